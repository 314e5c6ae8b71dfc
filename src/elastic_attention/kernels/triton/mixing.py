"""Blended attention from kernels that make one path, or the rest of it, at a time: two calls, and a launch that mixes.

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
from .tiles import LN_2, LOG_2_E, load_real_rows, locate_tile, store_rows

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
    attend_hidden: Attend | None,
) -> tuple[Paths, Tensor]:
    """O_sparse and O_full of all heads, and their mix.

    Args:
        q, k, v, config, scale, spans, attend, attend_hidden: as in `blend_triton`.
        route: (sequences, G) float32.
    """

    def attend_all(mode: int) -> tuple[Tensor, Tensor]:
        modes = torch.full(route.shape, mode, dtype=torch.uint8, device=q.device)
        return attend(q, k, v, modes, config, scale, spans=spans)

    sparse, sparse_lse = attend_all(STREAMING)
    is_parted = attend_hidden is not None
    full, full_lse = attend_hidden(q, k, v, config, scale, spans=spans) if attend_hidden else attend_all(FULL)
    paths = Paths(sparse=sparse, full=full, sparse_lse=sparse_lse, full_lse=full_lse)
    return paths, mix_paths(route, paths, k.shape[2], spans, is_parted=is_parted)


@on_its_device
def mix_paths(route: Tensor, paths: Paths, num_keys: int, spans: Spans | None, *, is_parted: bool = False) -> Tensor:
    """r * O_sparse + (1 - r) * O_full, (B, H, T, D).

    Args:
        route: (sequences, G) float32.
        paths: completed in place, if `full` and `full_lse` hold nothing but the keys that the sparse path leaves out.
        num_keys: rows of the keys.
        is_parted: whether they do.
    """
    full = paths.full
    is_packed = spans is not None and spans.is_packed
    out = torch.zeros_like(full) if is_packed else torch.empty_like(full)  # nobody writes rows between sequences
    if not out.numel():
        return out
    (num_q_heads, num_queries, head_dim), num_kv_heads = full.shape[1:], route.shape[1]
    num_tiles = count_tiles(num_queries, num_keys, spans, _ROWS)
    group_size = num_q_heads // num_kv_heads
    _mix[shape_grid(route.shape[0] * num_kv_heads, group_size, num_tiles, 0)](
        *(*paths.tensors, out, route),
        *name_spans(spans, full),
        out.stride(2),
        *(num_queries, num_keys, num_kv_heads),
        GROUP=group_size,
        D=head_dim,
        ROWS=_ROWS,
        PARTED=is_parted,
        RAGGED=spans is not None,
        PACKED=is_packed,
        num_warps=4 if head_dim <= 128 else 8,
    )
    return out


@triton.jit
def load_rows_of(base, row, stride, is_wanted, ROWS: tl.constexpr, D: tl.constexpr):
    """The wanted rows of [row, row + ROWS), zeros for the others."""
    columns = tl.arange(0, triton.next_power_of_2(D))[None, :]
    pointers = base + row.to(tl.int64) * stride + tl.arange(0, ROWS)[:, None] * stride + columns
    return tl.load(pointers, mask=is_wanted[:, None] & (columns < D), other=0.0)


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _mix(
    sparse, full, sparse_lse, full_lse, out, routes, query_starts, query_lengths, key_starts, key_lengths,
    row_stride, T, S, num_kv_heads,
    GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, PARTED: tl.constexpr, RAGGED: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    (
        sequence, batch, kv_head, head, _, first, shift, first_real, num_keys, first_kept, stop_kept, _
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, ROWS, RAGGED, PACKED,
    )  # fmt: skip
    positions = first + tl.arange(0, ROWS)
    is_kept = (positions >= first_kept) & (positions < stop_kept)
    start = batch.to(tl.int64) * T * row_stride + head * D
    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    one = load_real_rows(sparse + start, first - shift, row_stride, T, ROWS, D).to(tl.float32)
    if PARTED:
        is_real = (positions >= first_real) & (positions < num_keys)
        places = (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + positions - shift
        seen = tl.load(sparse_lse + places, mask=is_real, other=0.0) * LOG_2_E
        hidden = tl.load(full_lse + places, mask=is_real, other=float("-inf")) * LOG_2_E
        # Rows of which nothing is hidden were never written.
        other = load_rows_of(full + start, first - shift, row_stride, hidden > float("-inf"), ROWS, D).to(tl.float32)
        higher = tl.maximum(seen, hidden)
        both = higher + tl.math.log2(tl.math.exp2(seen - higher) + tl.math.exp2(hidden - higher))
        other = one * tl.math.exp2(seen - both)[:, None] + other * tl.math.exp2(hidden - both)[:, None]
        # As it is stored, because a layer that runs again mixes what is stored.
        other = other.to(full.dtype.element_ty).to(tl.float32)
        store_rows(full, full + start, batch, head, first - shift, T, row_stride, is_kept, other, ROWS, D, False)
        tl.store(full_lse + places, both * LN_2, mask=is_real)
    else:
        other = load_real_rows(full + start, first - shift, row_stride, T, ROWS, D).to(tl.float32)
    result = tl.math.fma(route, one, (1 - route) * other)
    store_rows(out, out + start, batch, head, first - shift, T, row_stride, is_kept, result, ROWS, D, False)
