"""Shared fixtures: one thread, fixed seeds, a tiny attached Llama."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests marked `network` are the only ones that may leave the machine

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, so it has to come first
torch.set_num_threads(1)
settings.register_profile("elastic", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("elastic")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    """A tiny Llama, free to be changed."""
    from tiny_models import make_model

    return make_model()


@pytest.fixture
def handle(model):
    """Untrained routers on `model`."""
    from tiny_models import attach_tiny

    return attach_tiny(model)
