"""Which kernels run: what every backend needs, and what "auto" takes.

hopper     warp-specialised, one launch for all heads; NVIDIA capability 9
triton     one launch for all heads; NVIDIA and AMD GPUs
cpu        PyTorch's fused kernels on pieces without masks; any device
reference  float64 masks; any device
"""

import logging
import os
from functools import cache, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..errors import BackendUnavailable

_logger = logging.getLogger(__name__)

BACKENDS = ("hopper", "triton", "cpu", "reference")
_AUTO = {
    "hopper": "the fastest kernel for this GPU, one launch for all heads of a layer",
    "triton": "one launch for all heads of a layer",
    "cpu": "PyTorch's fused kernels on gathered blocks run on every device",
}


def is_fused(backend: str) -> bool:
    """Does the backend take a whole ragged batch in one launch, with nothing read by the host?"""
    return backend in ("hopper", "triton")


def choose_backend(
    backend: str,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 128,
    *,
    block_size: int = 64,
    needs_gradient: bool = False,
) -> str:
    """The backend that `backend` stands for; "auto" logs its choice and reason once.

    Args:
        backend: one of `BACKENDS` or "auto".
        device: of the tensors; None = only check that the name exists.
        dtype, head_dim: of the tensors.
        block_size: of the sparse pattern.
        needs_gradient: the call is differentiated.

    Raises:
        BackendUnavailable: there is no such backend, or it cannot run; the message says what it lacks.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise BackendUnavailable(f"backend={backend!r} does not exist; use 'auto' or one of {sorted(BACKENDS)}.")
    if device is None:
        return backend
    if backend != "auto":
        if lack := explain_backend(backend, device, dtype, head_dim, block_size, needs_gradient):
            raise BackendUnavailable(f"backend={backend!r} cannot run here: {lack}. Use 'auto' or 'cpu'.")
        return backend
    candidates = ["cpu"] if device.type == "cpu" else list(_AUTO)
    for name in candidates:
        if explain_backend(name, device, dtype, head_dim, block_size, needs_gradient) is None:
            return log_choice(name, _AUTO[name])
    raise AssertionError("backend 'cpu' runs everywhere")


@lru_cache(maxsize=256)
def explain_backend(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int, needs_gradient: bool
) -> str | None:
    """What the backend lacks, as half a sentence; None if it can run."""
    if not is_fused(backend):
        return None
    if find_spec("triton") is None:
        return "the package triton is missing; it comes with PyTorch's GPU builds"
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (is_interpreted and backend == "triton"):
        return f"it needs a GPU, the tensors are on {device.type!r}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it knows float32, float16 and bfloat16, not {dtype}"
    if head_dim % 16 or not 16 <= head_dim <= 256:
        return f"it needs a head dim that is a multiple of 16 up to 256, not {head_dim}"
    if block_size % 16 or not 16 <= block_size <= 128:
        return f"it needs blocks of 16 to 128 tokens in steps of 16, not {block_size}"
    if backend != "hopper":
        return None
    from .hopper import explain_machine

    return "it has no backward; 'triton' has one" if needs_gradient else explain_machine(device, dtype, head_dim)


def check_tensors(backend: str, chosen: str, q: Tensor, k: Tensor, v: Tensor, *, list_block: int | None = None) -> str:
    """`chosen`, or what "auto" takes instead where that kernel cannot read these tensors; it logs why, once.

    Args:
        backend: what was asked for, `chosen`: what `choose_backend` made of it.
        list_block: block size of the block lists, None = there are none.

    Raises:
        BackendUnavailable: `backend` asked for it by name.
    """
    if chosen != "hopper":
        return chosen
    from .hopper import explain_tensors

    lack = explain_tensors(q, k, v, list_block)
    if lack is None:
        return chosen
    if backend != "auto":
        raise BackendUnavailable(f"backend={backend!r} cannot run here: {lack}.")
    return log_choice("triton", f"'hopper' would be faster, but {lack}")


@cache
def log_choice(backend: str, reason: str) -> str:
    """`backend`, after telling once that "auto" chose it and why."""
    _logger.info("backend 'auto' chose %r: %s.", backend, reason)
    return backend
