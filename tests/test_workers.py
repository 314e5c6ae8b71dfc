"""Workers of a data loader, after the process that reads from them was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

READER = """
import multiprocessing
import time
from torch.utils.data import DataLoader
from elastic_attention.workers import end_with_parent

class Large:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return bytes(1 << 20)  # more than a pipe holds

loader = iter(DataLoader(Large(), batch_size=None, num_workers=3, worker_init_fn=end_with_parent))
next(loader)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_of_a_killed_process_end():
    reader = subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in reader.stdout.readline().split()]
    try:
        assert len(workers) == 3 and all(map(is_running, workers))
        reader.kill()
        reader.wait()
        deadline = time.monotonic() + 20
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, workers))
    finally:
        reader.kill()
        for worker in filter(is_running, workers):
            os.kill(worker, signal.SIGKILL)


def test_a_process_that_nobody_started_goes_on():
    code = "from elastic_attention.workers import end_with_parent; end_with_parent(); print('here')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "here\n"
