"""`elastic-attn eval` in processes of its own: killed in earnest, and started twice by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

WORDS = "--suite almanac --tasks classes,regions --lengths 700 --samples 4 --methods dense,routed --dtype float32"
COMMAND = [sys.executable, "-m", "elastic_attention.cli", "eval"]


def strip(path):
    """Metrics of a record without seconds."""

    def walk(entry):
        if isinstance(entry, dict):
            return {key: walk(value) for key, value in entry.items() if "seconds" not in key}
        return [walk(value) for value in entry] if isinstance(entry, list) else entry

    return walk(json.loads(path.read_text())["metrics"])


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """(folder, starts a command with that folder, metrics of a run that nobody disturbed)."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(name, command=COMMAND):
        words = [*command, *tiny, *WORDS.split(), "--output", folder / name, "--json", folder / f"{name}.json"]
        return subprocess.Popen(
            [str(word) for word in words], cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    whole = start("whole")
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    return folder, start, strip(folder / "whole.json")


def count_lines(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("answers-*.jsonl"))


def test_a_killed_process_goes_on_to_the_same_record(run):
    folder, start, whole = run
    killed, end = start("killed"), time.monotonic() + 100
    while killed.poll() is None and count_lines(folder / "killed") < 5 and time.monotonic() < end:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    asked = count_lines(folder / "killed")
    assert killed.returncode == -signal.SIGKILL and 5 <= asked < 16 and not (folder / "killed.json").exists()
    again = start("killed")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert strip(folder / "killed.json") == whole
    assert count_lines(folder / "killed") == 16, "nothing is asked twice"


def test_torchrun_gives_the_record_of_one_process(run):
    folder, start, whole = run
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    both = start("both", [*launcher, *COMMAND])
    said, _ = both.communicate(timeout=120)
    assert both.returncode == 0, said
    assert strip(folder / "both.json") == whole
    parts = sorted((folder / "both").glob("answers-*.jsonl"))
    assert [path.name for path in parts] == ["answers-0-of-2.jsonl", "answers-1-of-2.jsonl"]
    assert all(path.read_text() for path in parts)
