"""Blended attention from a kernel that makes one path at a time: two calls, and a launch that mixes them.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import StreamingConfig
from ..arguments import count_tiles, name_spans
from ..device import on_its_device
from ..modes import FULL, STREAMING
from ..spans import Spans
from .backward import Paths
from .shapes import shape_grid
from .tiles import load_real_rows, locate_tile, store_rows

_ROWS = 64

Attend = Callable[..., tuple[Tensor, Tensor]]


@on_its_device
def attend_paths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    attend: Attend,
) -> Paths:
    """O_sparse and O_full of all heads.

    Args:
        q, k, v, route, config, scale, spans: as in `blend_triton`.
        attend: called like `attend_triton`.
    """
    results = [
        attend(q, k, v, torch.full(route.shape, mode, dtype=torch.uint8, device=q.device), config, scale, spans=spans)
        for mode in (STREAMING, FULL)
    ]
    (sparse, sparse_lse), (full, full_lse) = results
    return Paths(sparse=sparse, full=full, sparse_lse=sparse_lse, full_lse=full_lse)


@on_its_device
def mix_paths(sparse: Tensor, full: Tensor, route: Tensor, num_keys: int, spans: Spans | None) -> Tensor:
    """r * O_sparse + (1 - r) * O_full, (B, H, T, D); route (sequences, G) float32."""
    is_packed = spans is not None and spans.is_packed
    out = torch.zeros_like(full) if is_packed else torch.empty_like(full)  # nobody writes rows between sequences
    if not out.numel():
        return out
    (num_q_heads, num_queries, head_dim), num_kv_heads = full.shape[1:], route.shape[1]
    num_tiles = count_tiles(num_queries, num_keys, spans, _ROWS)
    group_size = num_q_heads // num_kv_heads
    _mix[shape_grid(route.shape[0] * num_kv_heads, group_size, num_tiles, 0)](
        *(sparse, full, out, route),
        *name_spans(spans, full),
        out.stride(2),
        *(num_queries, num_keys, num_kv_heads),
        GROUP=group_size,
        D=head_dim,
        ROWS=_ROWS,
        RAGGED=spans is not None,
        PACKED=is_packed,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _mix(
    sparse, full, out, routes, query_starts, query_lengths, key_starts, key_lengths, row_stride, T, S, num_kv_heads,
    GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    (
        sequence, batch, kv_head, head, _, first, shift, _, _, first_kept, stop_kept, _
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, ROWS, RAGGED, PACKED,
    )  # fmt: skip
    positions = first + tl.arange(0, ROWS)
    is_kept = (positions >= first_kept) & (positions < stop_kept)
    start = batch.to(tl.int64) * T * row_stride + head * D
    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    one = load_real_rows(sparse + start, first - shift, row_stride, T, ROWS, D).to(tl.float32)
    other = load_real_rows(full + start, first - shift, row_stride, T, ROWS, D).to(tl.float32)
    result = route * one + (1 - route) * other
    store_rows(out, out + start, batch, head, first - shift, T, row_stride, is_kept, result, ROWS, D, False)
