"""Backend "hopper": a warp-specialised prefill kernel for NVIDIA GPUs of capability 9; needs PyTorch's Triton alone."""

import torch
from torch import Tensor

from ...config import StreamingConfig
from ..block_lists import BlockLists
from ..spans import Spans
from .schedule import TILE

HEAD_DIMS = (64, 128)
_GLUON_MODULES = ("triton.experimental.gluon.language.nvidia.hopper", "triton.experimental.gluon.nvidia.hopper")
_GLUON_NAMES = ("warpgroup_mma", "warpgroup_mma_wait", "fence_async_shared", "mbarrier", "tma")


def attend_hopper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    *,
    spans: Spans | None = None,
    lists: BlockLists | None = None,
    dense_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hybrid attention in one launch.

    Args:
        q: (B, H, T, D), k, v: (B, G, S, D) bfloat16 or float16, any strides that `explain_hopper` accepts.
            Packed: B = 1 and the sequences follow each other along T and S, without gaps.
        modes: (sequences, G) int32 on the device, see `kernels.modes`; never read by the host.
        config: what STREAMING heads read.
        scale: factor of the scores, positive.
        spans: where the sequences lie; None = every element holds T queries that are the last of S keys.
        lists: what LISTS heads read, blocks of 128 tokens.
        dense_rows: (sequences, 2) int32, positions [start, stop) whose queries read every key in TRIANGLE and
            LISTS heads.

    Returns:
        out, shape and dtype of q, memory order (B, T, H, D); lse float32 (B, H, T), natural logarithm.
        Padded rows: 0 and -inf.

    Raises:
        ValueError: `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive; negate the queries instead.")
    from .prefill import launch

    return launch(q, k, v, modes, config, scale, spans, lists, dense_rows)


def explain_hopper(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists | None = None) -> str | None:
    """Why `attend_hopper` cannot run on these tensors, or None if it can. Compiles nothing, reads no device memory."""
    if q.device.type != "cuda" or torch.version.hip is not None:
        return f"the hopper backend needs an NVIDIA GPU, the tensors are on {q.device}"
    capability = torch.cuda.get_device_capability(q.device)
    if capability[0] != 9:
        return f"the hopper backend needs compute capability 9.x, {q.device} has {capability[0]}.{capability[1]}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"the hopper backend needs bfloat16 or float16, got {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"the hopper backend needs a head dim of {HEAD_DIMS}, got {q.shape[-1]}"
    if lists is not None and lists.block_size != TILE:
        return f"the hopper backend needs lists of blocks of {TILE} tokens, got {lists.block_size}"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not is_describable(x):
            return f"the copy engine needs 16-byte aligned rows, {name} has strides {x.stride()}; make it contiguous"
    return explain_triton()


def is_describable(x: Tensor) -> bool:
    """Whether the copy engine can read x (B, H, T, D): contiguous rows of distinct memory, 16-byte aligned."""
    steps = [s for s, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1]
    return (
        x.numel() > 0
        and x.stride(-1) == 1
        and x.data_ptr() % 16 == 0
        and all(s > 0 and s * x.element_size() % 16 == 0 for s in steps)
    )


def explain_triton() -> str | None:
    """What the installed Triton lacks of Gluon for Hopper, or None."""
    try:
        import importlib

        language = importlib.import_module(_GLUON_MODULES[0])
        importlib.import_module(_GLUON_MODULES[1]).TensorDescriptor  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"the hopper backend needs Triton 3.6 or newer with Gluon: {error}"
    missing = [name for name in _GLUON_NAMES if not hasattr(language, name)]
    return f"the hopper backend needs Gluon's {', '.join(missing)}; install Triton 3.6" if missing else None
