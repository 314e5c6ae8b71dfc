"""Triton's kernels on the GPU if there is one, else in Triton's interpreter on tiny shapes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def half_dtypes(device):
    """Types narrower than float32 that run here: the interpreter cannot multiply matrices of bfloat16."""
    return (torch.float16,) if device.type == "cpu" else (torch.float16, torch.bfloat16)


@pytest.fixture(scope="session")
def compile_for_hopper():
    """What the kernels of a script become on sm_90; compiled in a process of its own, where the interpreter is off."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def run(name):
        command = [sys.executable, Path(__file__).with_name(name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory holds nan, so that a result nobody wrote shows."""
    for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def make_poisoned(*args, make=make, **kwargs):
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

        monkeypatch.setattr(owner, name, make_poisoned)
