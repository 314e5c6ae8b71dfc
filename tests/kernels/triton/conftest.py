"""Triton's kernels on the GPU if there is one, else in Triton's interpreter on tiny shapes."""

from importlib.util import find_spec

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


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory holds nan, so that a result nobody wrote shows."""
    for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def make_poisoned(*args, make=make, **kwargs):
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

        monkeypatch.setattr(owner, name, make_poisoned)
