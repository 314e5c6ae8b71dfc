"""The gradient of a mix of two attention paths, at the price of one.

A query that sees a key on both paths gives it the weight w = r exp(s - lse_s) + (1 - r) exp(s - lse_f), which is
exp(s - L) with -L = log(r exp(-lse_s) + (1 - r) exp(-lse_f)): one softmax term with statistics of its own. Its score
gradient is w (dP - d), where d is the mean of the paths' <O, dO> weighted by the two terms of exp(-L). A key that
only the full path reads has L = lse_f - log(1 - r) and d = <O_full, dO>. So the sweeps below are those of ordinary
attention; they only choose the statistics (L, d) by the key tile, and pass over the hidden tiles where r is 1.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import StreamingConfig
from ..arguments import LOG2_E, count_tiles, name_spans
from ..device import on_its_device
from ..full_gradients import FullHeads, has_full_gradients
from ..spans import Spans
from .gradient_sweeps import sweep_keys, sweep_queries
from .shapes import (
    TileShape,
    choose_gradient_shapes,
    holds_whole_blocks,
    shape_grid,
    takes_descriptors,
)
from .tiles import LOG_2_E, can_describe, describe, load_real_rows, locate_tile

_WEIGH_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """Results of both paths of a blended forward pass.

    Attributes:
        sparse, full: (B, H, T, D) outputs, memory order (B, T, H, D).
        sparse_lse, full_lse: (B, H, T) float32, natural logarithm; -inf in rows of no sequence.
    """

    sparse: Tensor
    full: Tensor
    sparse_lse: Tensor
    full_lse: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return self.sparse, self.full, self.sparse_lse, self.full_lse

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Paths":
        """From such `tensors`."""
        sparse, full, sparse_lse, full_lse = tensors
        return cls(sparse=sparse, full=full, sparse_lse=sparse_lse, full_lse=full_lse)


def differentiate(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    paths: Paths,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    *,
    is_fast: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r * O_sparse + (1 - r) * O_full.

    Args:
        grad: (B, H, T, D), the gradient of the mix.
        route: (sequences, G) float32; above 1 = left out, no gradient but that of the route is written.
        paths: what the forward pass left.
        q, k, v, config, scale, spans: as in `blend_triton`.
        is_fast: cuDNN may compute long full heads, see `full_gradients`.

    Returns:
        dq, dk, dv in the shapes and dtypes of q, k, v; d_route (sequences, G) float32.
    """
    # With gaps between sequences tiles may end in memory that holds anything, which only masked pointers leave alone.
    is_whole = spans is None or spans.is_whole
    shapes = choose_gradient_shapes(q, is_plain=is_whole and holds_whole_blocks(config.block_size, None))
    use_descriptors = is_whole and takes_descriptors(q)
    given = grad, q, k, v
    if not is_fast or not has_full_gradients(q):
        return launch_gradients(*given, route, paths, config, scale, spans, shapes, use_descriptors)
    heads = FullHeads(route, spans, q, k)
    dq, dk, dv, d_route = launch_gradients(*given, heads.others, paths, config, scale, spans, shapes, use_descriptors)
    heads.write_gradients(*given, paths.full, paths.full_lse, scale, (dq, dk, dv))
    return dq, dk, dv, d_route


@on_its_device
def launch_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    paths: Paths,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    shapes: tuple[TileShape, TileShape],
    use_descriptors: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`differentiate` with given tile shapes: one for the sweep over queries (dK, dV), one over keys (dQ)."""
    batch, num_q_heads, num_queries, head_dim = q.shape
    num_kv_heads, num_keys = k.shape[1:3]
    sequences, group_size = route.shape[0], num_q_heads // num_kv_heads
    row_bytes = 2 * num_keys * head_dim * k.element_size()
    if grad.stride(-1) != 1:
        grad = grad.contiguous()

    def make(num_rows: int, dtype: torch.dtype) -> Tensor:
        # Rows of no sequence get no gradient, and nobody writes them.
        fresh = torch.empty if spans is None or spans.is_whole else torch.zeros
        return fresh(batch, num_rows, num_q_heads, head_dim, dtype=dtype, device=q.device).transpose(1, 2)

    dq = make(num_queries, q.dtype)
    # One query head after the other, so that the caches hold what programs share; the heads of a group add up later.
    dk, dv = (make(num_keys, k.dtype if group_size == 1 else torch.float32) for _ in range(2))
    if not q.numel():
        return dq, torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(route)
    statistics = q.new_empty(4, batch, num_q_heads, num_queries, dtype=torch.float32)
    tiles = count_tiles(num_queries, num_keys, spans, _WEIGH_ROWS)
    route_terms = q.new_empty(sequences, num_kv_heads, group_size * tiles, dtype=torch.float32)
    is_described = use_descriptors and can_describe(q, k, v, grad)
    common: dict[str, Any] = dict(
        GROUP=group_size,
        D=head_dim,
        RAGGED=spans is not None,
        PACKED=spans is not None and spans.is_packed,
    )
    _weigh[shape_grid(sequences * num_kv_heads, group_size, tiles, row_bytes)](
        *(grad, paths.sparse, paths.full, paths.sparse_lse, paths.full_lse, route, statistics, route_terms),
        *name_spans(spans, q),
        *grad.stride()[:3],
        *paths.full.stride()[:3],
        statistics.stride(0),
        num_queries,
        num_keys,
        num_kv_heads,
        ROWS=_WEIGH_ROWS,
        **common,
        num_warps=4,
    )
    by_keys, by_queries = shapes
    key_tiles = triton.cdiv(spans.max_query_length if spans is not None and spans.is_whole else num_keys, by_keys.keys)
    query_tiles = count_tiles(num_queries, num_keys, spans, by_queries.queries)
    for kernel, shape, results, grid in (
        (sweep_queries, by_keys, (dk, dv), shape_grid(sequences * num_q_heads, 1, key_tiles, row_bytes)),
        (sweep_keys, by_queries, (dq,), shape_grid(sequences * num_kv_heads, group_size, query_tiles, row_bytes)),
    ):
        tensors = q, k, v, grad
        sources: tuple[Any, ...] = tensors
        if is_described:
            rows = shape.queries, shape.keys, shape.keys, shape.queries
            sources = tuple(describe(x, n) for x, n in zip(tensors, rows, strict=True))
        kernel[grid](
            *sources,
            *(*tensors, *results, route, statistics),
            *name_spans(spans, q),
            *(stride for x in (*tensors, results[0]) for stride in x.stride()[:3]),
            statistics.stride(0),
            num_queries,
            num_keys,
            num_kv_heads,
            scale * LOG2_E,
            SINK=config.num_sink_tokens,
            LOCAL=config.local_window,
            BLOCK=config.block_size,
            QUERIES=shape.queries,
            KEYS=shape.keys,
            DESCRIPTORS=is_described,
            **common,
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    if group_size > 1:
        groups = (x.transpose(1, 2).unflatten(2, (num_kv_heads, group_size)) for x in (dk, dv))
        dk, dv = (x.sum(3).to(k.dtype).transpose(1, 2) for x in groups)
    return dq, dk, dv, route_terms.sum(-1)


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _weigh(
    grad, sparse, full, sparse_lse, full_lse, routes, statistics, route_terms,
    query_starts, query_lengths, key_starts, key_lengths,
    g_batch, g_head, g_row, o_batch, o_head, o_row, plane, T, S, num_kv_heads,
    GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Statistics in base 2, planes of (B, H, T): L and d of seen keys, L and d of hidden ones; and <O_s - O_f, dO>."""
    (
        sequence, batch, kv_head, head, behind, first, shift, first_real, num_keys, first_kept, stop_kept, key_start
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, ROWS, RAGGED, PACKED,
    )  # fmt: skip
    positions = first + tl.arange(0, ROWS)
    is_real = (positions >= first_real) & (positions < num_keys)
    row = first - first_real
    start = (first_real - shift).to(tl.int64)
    stop = num_keys - first_real
    out_start = batch.to(tl.int64) * o_batch + head.to(tl.int64) * o_head + start * o_row
    g_base = grad + batch.to(tl.int64) * g_batch + head.to(tl.int64) * g_head + start * g_row
    g_tile = load_real_rows(g_base, row, g_row, stop, ROWS, D).to(tl.float32)
    sparse_delta = tl.sum(load_real_rows(sparse + out_start, row, o_row, stop, ROWS, D).to(tl.float32) * g_tile, 1)
    full_delta = tl.sum(load_real_rows(full + out_start, row, o_row, stop, ROWS, D).to(tl.float32) * g_tile, 1)
    line = sequence * num_kv_heads * GROUP + head
    tl.store(route_terms + line.to(tl.int64) * tl.num_programs(1) + behind, tl.sum(sparse_delta - full_delta, 0))

    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    places = (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + first - shift + tl.arange(0, ROWS)
    sparse_total = tl.load(sparse_lse + places, mask=is_real, other=0.0) * LOG_2_E
    full_total = tl.load(full_lse + places, mask=is_real, other=0.0) * LOG_2_E
    # Relative to the sparse path, whose sum is the smaller one: the power below cannot overflow.
    full_share = (1 - route) * tl.math.exp2(sparse_total - full_total)
    both = route + full_share
    is_full = route == 0
    seen_total = tl.where(is_full, full_total, sparse_total - tl.math.log2(both))
    seen_delta = tl.where(is_full, full_delta, (route * sparse_delta + full_share * full_delta) / both)
    tl.store(statistics + places, seen_total, mask=is_real)
    tl.store(statistics + plane + places, seen_delta, mask=is_real)
    tl.store(statistics + 2 * plane + places, full_total - tl.math.log2(1 - route), mask=is_real)
    tl.store(statistics + 3 * plane + places, full_delta, mask=is_real)
