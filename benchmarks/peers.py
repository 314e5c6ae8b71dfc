"""Other people's attention kernels, as far as they can be imported here; one that is missing is named, never guessed.

Everything works on q (B, H, S, D), k and v (B, G, S, D) that are views of (B, S, heads, D).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from elastic_attention import StreamingConfig
from elastic_attention.evaluation.bench_gpu import Attend, Kernel, torch_kernels

_FA3 = ("fa3_fwd_interface", "flash_attn_interface")
_SPARSE_ATTENTION_TILES = ((128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 2), (64, 64, 4, 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A peer that cannot run here, and why."""

    name: str
    reason: str


def find_dense(device: torch.device) -> tuple[list[Kernel], list[Missing]]:
    """Dense kernels: those of PyTorch, and FlashAttention-3."""
    kernels = torch_kernels(device)
    module, reason = _load(*_FA3)
    if module is None or device.type != "cuda":
        return kernels, [Missing(name="fa3", reason=reason or "needs a GPU")]
    return [*kernels, Kernel(name="fa3", prepare=lambda routes: make_fa3(module), is_dense=True)], []


def find_hybrid(pattern: StreamingConfig, own: Kernel | None) -> tuple[list[Kernel], list[Missing]]:
    """Kernels with routes: FlexAttention, flash-sparse-attn, and the serial split of Algorithm 1(a).

    The split takes FlashAttention-3, or PyTorch's flash kernel, for the full heads, and FlexAttention or `own` for the
    sparse ones.
    """
    flex = Kernel(name="flex", prepare=lambda routes: make_flex(routes, pattern))
    gpu = torch.device("cuda")
    module = load_fa3(gpu)
    dense = make_fa3(module) if module is not None else torch_kernels(gpu)[0].prepare(torch.empty(0))
    name = "fa3" if module is not None else "sdpa flash"
    kernels = [flex, Kernel(name=f"split {name} + flex", prepare=lambda r: make_split(r, dense, flex.prepare))]
    if own is not None:
        kernels.append(Kernel(name=f"split {name} + {own.name}", prepare=lambda r: make_split(r, dense, own.prepare)))
    _stand_in_for_unused()
    sparse, reason = _load("flash_sparse_attn")
    if sparse is None:
        return kernels, [Missing(name="flash-sparse-attn", reason=reason)]
    prepare = functools.partial(make_flash_sparse, sparse, pattern=pattern)
    return [*kernels, Kernel(name="flash-sparse-attn", prepare=prepare, is_exact=False)], []


def list_versions() -> dict[str, str]:
    """Installed versions of the packages that peers come from."""
    found = {}
    for name in ("torch", "triton", "fa3-fwd", "flash-attn-3", "flash-sparse-attn", "nvidia-cudnn-cu13"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_fa3(device: torch.device) -> Any | None:
    """The module of FlashAttention-3; None where it is not installed or `device` is no GPU."""
    return _load(*_FA3)[0] if device.type == "cuda" else None


def make_fa3(module: Any) -> Attend:
    """Causal attention of FlashAttention-3."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = module.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend


def make_split(routes: Tensor, dense: Attend, prepare_sparse: Callable[[Tensor], Attend]) -> Attend:
    """Algorithm 1(a) of the paper: gather the full heads and the sparse heads, two kernels, scatter back.

    Raises:
        ValueError: the elements of the batch route differently, which two gathers cannot serve.
    """
    if not bool((routes == routes[:1]).all()):
        raise ValueError("the serial split needs one route for the whole batch")
    row = routes[0]
    full_kv, sparse_kv = (~row).nonzero()[:, 0], row.nonzero()[:, 0]
    attend_sparse = prepare_sparse(torch.ones(len(routes), len(sparse_kv), dtype=torch.bool, device=routes.device))
    parts = [(heads, attend) for heads, attend in ((full_kv, dense), (sparse_kv, attend_sparse)) if len(heads)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(parts) == 1:
            return parts[0][1](q, k, v)
        group_size = q.shape[1] // k.shape[1]
        out = torch.empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype, device=q.device)
        for heads, kernel in parts:
            query_heads = (heads[:, None] * group_size + torch.arange(group_size, device=q.device)).flatten()
            part = kernel(*(_take_heads(x, i) for x, i in ((q, query_heads), (k, heads), (v, heads))))
            out.index_copy_(2, query_heads, part.transpose(1, 2))
        return out.transpose(1, 2)

    return attend


def _take_heads(x: Tensor, heads: Tensor) -> Tensor:
    return x.transpose(1, 2).index_select(2, heads).transpose(1, 2)


def make_flex(routes: Tensor, pattern: StreamingConfig) -> Attend:
    """FlexAttention with one block list a query head; the lists are made at the first call of a shape."""
    masks: dict[tuple[int, ...], Any] = {}
    flex = _compile_flex()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key = tuple(q.shape)
        if key not in masks:
            masks[key] = build_block_mask(routes, pattern, tokens=q.shape[2], group_size=q.shape[1] // k.shape[1])
        return flex(q, k, v, block_mask=masks[key], enable_gqa=True)

    return attend


@functools.cache
def _compile_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def build_block_mask(routes: Tensor, pattern: StreamingConfig, *, tokens: int, group_size: int) -> Any:
    """FlexAttention's lists for routes (B, G): whole blocks before the diagonal, the diagonal with a causal mask.

    Raises:
        ValueError: `tokens` is no multiple of the block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    block = pattern.block_size
    if tokens % block:
        raise ValueError(f"{tokens} tokens are no multiple of the block {block}")
    count = tokens // block
    rows = torch.arange(count, dtype=torch.int32, device=routes.device)
    start = (rows - pattern.local_window // block + 1).clamp(min=0)
    sinks = torch.minimum(start, torch.full_like(start, pattern.num_sink_tokens // block))
    is_sparse = routes.repeat_interleave(group_size, dim=1)[..., None]
    whole_counts = torch.where(is_sparse, sinks + rows - start, rows).to(torch.int32)
    sparse_lists = torch.where(rows[None] < sinks[:, None], rows[None], rows[None] - sinks[:, None] + start[:, None])
    lists = torch.where(is_sparse[..., None], sparse_lists.clamp(max=count - 1), rows[None]).to(torch.int32)
    diagonal = torch.zeros_like(lists)
    diagonal[..., 0] = rows
    return BlockMask.from_kv_blocks(
        torch.ones_like(whole_counts),
        diagonal,
        whole_counts,
        lists.contiguous(),
        BLOCK_SIZE=(block, block),
        mask_mod=_is_causal,
        seq_lengths=(tokens, tokens),
        compute_q_blocks=False,
    )


def _is_causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def make_flash_sparse(module: Any, routes: Tensor, *, pattern: StreamingConfig) -> Attend:
    """flash-sparse-attn with a window per KV head. It has no routes per batch element, and its window counts tokens.

    The library's own tuner tries dozens of tiles; here it is told the best of four that suit this GPU.

    Raises:
        ValueError: the elements of the batch route differently.
    """
    if not bool((routes == routes[:1]).all()):
        raise ValueError("flash-sparse-attn needs one route for the whole batch")
    launch = importlib.import_module("flash_sparse_attn.ops.triton.launch_template")
    plans: dict[tuple[int, ...], tuple[Tensor, Sequence[int]]] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, tile: Sequence[int]) -> Tensor:
        launch.store_launch_config(
            q.device, "fwd_dense", q.shape[2], k.shape[2], max(16, q.shape[3]), config=(*tile, 1),
            is_local=True, qhead_per_kvhead=q.shape[1] // k.shape[1], is_causal=True,
        )  # fmt: skip
        out = module.flash_dense_attn_func(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, window_sizes=windows
        )
        return out.transpose(1, 2)

    def plan(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Sequence[int]]:
        block = pattern.block_size
        sparse = (pattern.num_sink_tokens, pattern.local_window - block, 0, block)
        full = (pattern.num_sink_tokens, q.shape[2], 0, block)
        windows = torch.tensor([sparse if r else full for r in routes[0].tolist()], dtype=torch.int32, device=q.device)
        timed = []
        for tile in _SPARSE_ATTENTION_TILES:
            run(q, k, v, windows, tile)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(q, k, v, windows, tile)
            end.record()
            torch.cuda.synchronize()
            timed.append((begin.elapsed_time(end), tile))
        return windows, min(timed)[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key = (*q.shape, *k.shape)
        if key not in plans:
            plans[key] = plan(q, k, v)
        return run(q, k, v, *plans[key])

    return attend


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatDecode:
    """FlashAttention-3's varlen call with every (sequence, KV head) as a sequence of `group_size` query heads.

    Keys and values are (total, 1, D) in one tensor; this is the best way that is known to decode over ragged caches
    with a stock kernel.
    """

    module: Any
    starts: Tensor
    query_starts: Tensor
    longest: int
    splits: int

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q (B * G, group_size, D) -> the same shape."""
        out = self.module.flash_attn_varlen_func(
            q, keys, values, self.query_starts, self.starts, 1, self.longest, causal=True,
            num_splits=self.splits, pack_gqa=True,
        )  # fmt: skip
        return out[0] if isinstance(out, tuple) else out


def plan_flat_decode(module: Any, lengths: Sequence[int], splits: int, device: torch.device) -> FlatDecode:
    """The call for rows of these lengths."""
    ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(device, torch.int32)
    query_starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
    return FlatDecode(module=module, starts=ends, query_starts=query_starts, longest=max(lengths), splits=splits)


def _stand_in_for_unused() -> None:
    """flash-sparse-attn imports a package for its projections, which attention does not use and no registry has."""
    wanted = {
        "": (),
        ".matmul_ogs": ("matmul_ogs", "PrecisionConfig", "FlexCtx"),
        ".numerics": ("InFlexData", "OutFlexData"),
    }
    if "triton_kernels" not in sys.modules and importlib.util.find_spec("triton_kernels") is None:
        for name, attributes in wanted.items():
            module = types.ModuleType(f"triton_kernels{name}")
            for attribute in attributes:
                setattr(module, attribute, None)
            sys.modules[module.__name__] = module


def _load(*names: str) -> tuple[Any | None, str]:
    """The first module that can be imported, or the reasons why none can."""
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name), ""
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{name}: {' '.join(str(error).split())[:200]}")
    return None, "; ".join(reasons)
