"""Backend "hopper": a warp-specialised prefill kernel for NVIDIA GPUs of capability 9; needs PyTorch's Triton alone."""

import torch
from torch import Tensor

from ...config import StreamingConfig
from ..arguments import is_describable
from ..block_lists import BlockLists
from ..modes import STREAMING
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
        q: (B, H, T, D), k, v: (B, G, S, D) bfloat16 or float16, any strides that `explain_tensors` accepts.
            Packed: B = 1 and the sequences follow each other along T and S.
        modes: (sequences, G) integers of any width on the device, see `kernels.modes`; never read by the host.
        config: what STREAMING heads read.
        scale: factor of the scores, positive.
        spans: where the sequences lie; None = every element holds T queries that are the last of S keys.
        lists: what LISTS heads read, blocks of 128 tokens.
        dense_rows: (sequences, 2) int32, positions [start, stop) whose queries read every key in TRIANGLE and
            LISTS heads.

    Returns:
        out, shape and dtype of q, memory order (B, T, H, D); lse float32 (B, H, T), natural logarithm.
        Rows that belong to no sequence: 0 and -inf.

    Raises:
        ValueError: `scale` is not positive.
    """
    from .prefill import launch

    return launch(q, k, v, modes, config, scale, spans, lists, dense_rows)


def attend_hidden(
    q: Tensor, k: Tensor, v: Tensor, config: StreamingConfig, scale: float, *, spans: Spans | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of all heads to the keys that STREAMING hides from them, those between sink and window.

    With the softmax states of the streaming heads it makes full attention, for the price of the keys in between.

    Args:
        config: blocks of a multiple of `TILE` tokens.
        q, k, v, scale, spans: as in `attend_hopper`.

    Returns:
        As `attend_hopper`; rows of which nothing is hidden: anything and -inf.

    Raises:
        ValueError: `scale` is not positive, or the blocks do not fit.
    """
    from .prefill import launch

    if config.block_size % TILE:
        raise ValueError(f"block_size is {config.block_size}, hidden keys need a multiple of {TILE}; attend to all.")
    shape = len(q) if spans is None else len(spans.query_start), k.shape[1]
    modes = torch.full(shape, STREAMING, dtype=torch.uint8, device=q.device)
    return launch(q, k, v, modes, config, scale, spans, None, None, is_hidden=True)


def explain_machine(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why `attend_hopper` cannot run there at all, as half a sentence, or None if it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, the tensors are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability[0] != 9:
        return f"it needs compute capability 9.x, {device} has {capability[0]}.{capability[1]}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16, not {dtype}"
    if head_dim not in HEAD_DIMS:
        return f"it needs a head dim of {HEAD_DIMS}, not {head_dim}"
    return explain_triton()


def explain_tensors(q: Tensor, k: Tensor, v: Tensor, list_block: int | None = None) -> str | None:
    """Why `attend_hopper` cannot read these tensors, as half a sentence, or None if it can.

    Args:
        q: (B, H, T, D), k, v: (B, G, S, D); not a byte of them is looked at.
        list_block: block size of the lists, None = there are none.
    """
    if list_block not in (None, TILE):
        return f"it needs lists of blocks of {TILE} tokens, not {list_block}"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.numel() and not is_describable(x):
            return f"its copies need rows at 16-byte steps, {name} has strides {x.stride()}; make it contiguous"
    return None


def explain_triton() -> str | None:
    """What the installed Triton lacks of Gluon for Hopper, or None."""
    try:
        import importlib

        language = importlib.import_module(_GLUON_MODULES[0])
        importlib.import_module(_GLUON_MODULES[1]).TensorDescriptor  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"it needs Triton 3.6 or newer with Gluon: {error}"
    missing = [name for name in _GLUON_NAMES if not hasattr(language, name)]
    return f"it needs Gluon's {', '.join(missing)}; install Triton 3.6" if missing else None
