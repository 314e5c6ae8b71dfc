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


def stop_in_the_middle(process, folder, by):
    """Send a signal once a few answers are there."""
    end = time.monotonic() + 100
    while process.poll() is None and count_lines(folder) < 5 and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(by)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_process_goes_on_to_the_same_record(run, workers):
    """Its lock goes with it, also where processes that it started live a moment longer."""
    folder, start, whole = run
    name, command = f"killed{workers}", [*COMMAND, "--workers", str(workers)]
    killed = start(name, command)
    stop_in_the_middle(killed, folder / name, signal.SIGKILL)
    killed.wait(timeout=60)
    asked = count_lines(folder / name)
    assert killed.returncode == -signal.SIGKILL and 5 <= asked < 16 and not (folder / f"{name}.json").exists()
    again = start(name, command)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert strip(folder / f"{name}.json") == whole
    assert count_lines(folder / name) == 16, "nothing is asked twice"


def test_a_second_process_in_the_folder_is_refused(run):
    folder, start, whole = run
    first = start("shared")
    stop_in_the_middle(first, folder / "shared", signal.SIGSTOP)
    left = count_lines(folder / "shared")
    try:
        second = start("shared")
        said, _ = second.communicate(timeout=120)
        assert 5 <= left < 16 and second.returncode == 2
        assert "Another process is answering part 0 of 1" in said and "Traceback" not in said
        assert count_lines(folder / "shared") == left
    finally:
        first.send_signal(signal.SIGCONT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert strip(folder / "shared.json") == whole and count_lines(folder / "shared") == 16


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
