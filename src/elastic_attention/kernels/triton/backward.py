"""The gradient of a mix of two attention paths, at the price of one.

A query that sees a key on both paths gives it the weight w = r exp(s - lse_s) + (1 - r) exp(s - lse_f), which is
exp(s - L) with -L = log(r exp(-lse_s) + (1 - r) exp(-lse_f)): one softmax term with statistics of its own. Its score
gradient is w (dP - d), where d is the mean of the paths' <O, dO> weighted by the two terms of exp(-L). A key that
only the full path reads has L = lse_f - log(1 - r) and d = <O_full, dO>. So the sweeps below are those of ordinary
attention; they only choose the statistics (L, d) by the key tile, and pass over the hidden tiles where r is 1.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import StreamingConfig
from ..spans import Spans
from .tiles import (
    LN_2,
    LOG2_E,
    LOG_2_E,
    TileShape,
    can_describe,
    choose_gradient_shapes,
    count_tiles,
    describe,
    find_window,
    has_descriptors,
    load_real_rows,
    load_rows,
    load_span,
    locate_tile,
    name_spans,
    shape_grid,
    place_program,
    store_rows,
)

_WEIGH_ROWS = 64
_NOBODY = tl.constexpr(1.0e30)  # L of a row without a query: no weight, and finite, since differences are taken


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r * O_sparse + (1 - r) * O_full.

    Args:
        grad: (B, H, T, D), the gradient of the mix.
        route: (sequences, G) float32.
        paths: what the forward pass left.
        q, k, v, config, scale, spans: as in `blend_triton`.

    Returns:
        dq, dk, dv in the shapes and dtypes of q, k, v; d_route (sequences, G) float32.
    """
    shapes = choose_gradient_shapes(q.device, q.dtype, q.shape[-1])
    # With ragged spans tiles may end in memory of others, which only masked pointers leave alone.
    use_descriptors = spans is None and has_descriptors(q.device)
    return launch_gradients(grad, q, k, v, route, paths, config, scale, spans, shapes, use_descriptors)


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
    # Rows of no sequence get no gradient, and nobody writes them.
    make = torch.empty if spans is None else torch.zeros
    dq, dk, dv = (
        make(x.shape[0], x.shape[2], x.shape[1], head_dim, dtype=x.dtype, device=x.device).transpose(1, 2)
        for x in (q, k, v)
    )
    if not q.numel():
        return dq, dk.zero_(), dv.zero_(), torch.zeros_like(route)
    statistics = q.new_empty(4, batch, num_q_heads, num_queries, dtype=torch.float32)
    tiles = count_tiles(num_queries, num_keys, spans, _WEIGH_ROWS)
    route_terms = q.new_empty(sequences, num_kv_heads, group_size * tiles, dtype=torch.float32)
    use_descriptors = use_descriptors and can_describe(q, k, v, grad)
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
    for kernel, shape, results, tiles, programs in (
        (_sweep_queries, by_keys, (dk, dv), triton.cdiv(num_keys, by_keys.keys), 1),
        (_sweep_keys, by_queries, (dq,), count_tiles(num_queries, num_keys, spans, by_queries.queries), group_size),
    ):
        sources: tuple[Any, ...] = (q, k, v, grad)
        if use_descriptors:
            sources = tuple(
                describe(x, n) for x, n in zip(sources, (shape.queries, shape.keys, shape.keys, shape.queries), strict=True)
            )
        kernel[shape_grid(sequences * num_kv_heads, programs, tiles, row_bytes)](
            *sources,
            *(q, k, v, grad, *results, route, statistics),
            *name_spans(spans, q),
            *(stride for x in (q, k, v, grad, results[0]) for stride in x.stride()[:3]),
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
            DESCRIPTORS=use_descriptors,
            **common,
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
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


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _sweep_queries(
    q_desc, k_desc, v_desc, g_desc, q, k, v, grad, dk, dv, routes, statistics,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    d_batch, d_head, d_row, plane, T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys, from the queries of all heads of its KV head. Tiles in between are transposed."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    EDGES: tl.constexpr = BLOCK % QUERIES != 0 or BLOCK % KEYS != 0
    sequence, kv_head, _, tile = place_program(num_kv_heads, 1)
    query_start, query_length, key_start, num_keys = load_span(
        query_starts, query_lengths, key_starts, key_lengths, sequence, T, S, RAGGED
    )
    first_key = tile * KEYS
    if first_key >= num_keys:
        return
    batch = sequence * 0 if PACKED else sequence
    first_real = num_keys - query_length
    shift = first_real - query_start
    keys = first_key + tl.arange(0, KEYS)
    last_block = (first_key + KEYS - 1) // BLOCK
    begin = tl.maximum(first_key, first_real) // QUERIES
    end = tl.cdiv(num_keys, QUERIES)
    if (tl.load(routes + sequence * num_kv_heads + kv_head) == 1) & (first_key >= SINK):
        end = tl.minimum(end, tl.cdiv((last_block + LOCAL // BLOCK) * BLOCK, QUERIES))
    count = tl.where(query_length > 0, tl.maximum(end - begin, 0), 0)

    k_base = k + batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    k_tile = load_rows(k_desc, k_base, batch, kv_head, key_start, first_key, k_row, num_keys, KEYS, D, DESCRIPTORS)
    v_tile = load_rows(v_desc, v_base, batch, kv_head, key_start, first_key, v_row, num_keys, KEYS, D, DESCRIPTORS)
    q_base = q + batch.to(tl.int64) * q_batch + query_start.to(tl.int64) * q_row
    g_base = grad + batch.to(tl.int64) * g_batch + query_start.to(tl.int64) * g_row
    k_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    v_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    for i in tl.range(0, GROUP * count):
        head = kv_head * GROUP + i // count
        first = (begin + i % count) * QUERIES
        row = first - first_real
        q_tile = load_rows(
            q_desc, q_base + head.to(tl.int64) * q_head, batch, head, query_start, row, q_row, query_length,
            QUERIES, D, DESCRIPTORS,
        )  # fmt: skip
        g_tile = load_rows(
            g_desc, g_base + head.to(tl.int64) * g_head, batch, head, query_start, row, g_row, query_length,
            QUERIES, D, DESCRIPTORS,
        )  # fmt: skip
        queries = first + tl.arange(0, QUERIES)
        is_real = (queries >= first_real) & (queries < num_keys)
        places = statistics + (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + queries - shift
        is_hidden = (first_key >= SINK) & (first // BLOCK - LOCAL // BLOCK >= last_block)
        chosen = places + tl.where(is_hidden, 2 * plane, 0)
        total = tl.load(chosen, mask=is_real, other=_NOBODY)
        delta = tl.load(chosen + plane, mask=is_real, other=0.0)
        logits = tl.dot(k_tile, q_tile.T, input_precision="ieee") * scale - total[None, :]
        if EDGES:
            last = (first + QUERIES - 1) // BLOCK - LOCAL // BLOCK
            is_mixed = (first_key + KEYS > SINK) & (last >= first_key // BLOCK) & (is_hidden ^ True)
            hidden_total = tl.load(places + 2 * plane, mask=is_real & is_mixed, other=_NOBODY)
            hidden_delta = tl.load(places + 3 * plane, mask=is_real & is_mixed, other=0.0)
            sees = (keys[:, None] < SINK) | (keys[:, None] // BLOCK > queries[None, :] // BLOCK - LOCAL // BLOCK)
            if is_mixed:
                logits = tl.where(sees, logits, logits + (total - hidden_total)[None, :])
        if first < first_key + KEYS:
            logits = tl.where(keys[:, None] <= queries[None, :], logits, float("-inf"))
        weights = tl.math.exp2(logits)
        v_grad = tl.dot(weights.to(q_tile.dtype), g_tile, v_grad, input_precision="ieee")
        excess = tl.dot(v_tile, g_tile.T, input_precision="ieee") - delta[None, :]
        if EDGES:
            if is_mixed:
                excess = tl.where(sees, excess, excess + (delta - hidden_delta)[None, :])
        k_grad = tl.dot((weights * excess).to(q_tile.dtype), q_tile, k_grad, input_precision="ieee")
    d_start = batch.to(tl.int64) * d_batch + kv_head.to(tl.int64) * d_head + key_start.to(tl.int64) * d_row
    store_rows(dk, dk + d_start, 0, 0, first_key, d_row, keys < num_keys, k_grad * (scale * LN_2), KEYS, D, False)
    store_rows(dv, dv + d_start, 0, 0, first_key, d_row, keys < num_keys, v_grad, KEYS, D, False)


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _sweep_keys(
    q_desc, k_desc, v_desc, g_desc, q, k, v, grad, dq, routes, statistics,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    d_batch, d_head, d_row, plane, T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries, from the keys it reads."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    EDGES: tl.constexpr = BLOCK % QUERIES != 0 or BLOCK % KEYS != 0
    (
        sequence, batch, kv_head, head, _, first, shift, first_real, num_keys, first_kept, stop_kept, key_start
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, QUERIES, RAGGED, PACKED,
    )  # fmt: skip
    if (first + QUERIES <= first_real) | (first >= num_keys):
        return
    queries = first + tl.arange(0, QUERIES)
    is_real = (queries >= first_real) & (queries < num_keys)
    query_start, query_length, row = first_real - shift, num_keys - first_real, first - first_real
    places = statistics + (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + queries - shift
    seen_total = tl.load(places, mask=is_real, other=_NOBODY)
    seen_delta = tl.load(places + plane, mask=is_real, other=0.0)
    hidden_total = tl.load(places + 2 * plane, mask=is_real, other=_NOBODY)
    hidden_delta = tl.load(places + 3 * plane, mask=is_real, other=0.0)
    start = batch.to(tl.int64)
    q_base = q + start * q_batch + head.to(tl.int64) * q_head + query_start.to(tl.int64) * q_row
    g_base = grad + start * g_batch + head.to(tl.int64) * g_head + query_start.to(tl.int64) * g_row
    k_base = k + start * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + start * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    q_tile = load_rows(q_desc, q_base, batch, head, query_start, row, q_row, query_length, QUERIES, D, DESCRIPTORS)
    g_tile = load_rows(g_desc, g_base, batch, head, query_start, row, g_row, query_length, QUERIES, D, DESCRIPTORS)

    stop = tl.cdiv(tl.minimum(first + QUERIES, num_keys), KEYS)
    diagonal = first // KEYS
    opens, opened = find_window(first, QUERIES, KEYS, LOCAL, BLOCK)
    before, jump = stop, 0
    if tl.load(routes + sequence * num_kv_heads + kv_head) == 1:
        before = tl.minimum(tl.cdiv(SINK, KEYS), opens)
        jump = opens - before
    q_grad = tl.zeros([QUERIES, WIDTH], tl.float32)
    for i in tl.range(0, stop - jump):
        tile = i + tl.where(i < before, 0, jump)
        k_tile = load_rows(k_desc, k_base, batch, kv_head, key_start, tile * KEYS, k_row, num_keys, KEYS, D, DESCRIPTORS)
        v_tile = load_rows(v_desc, v_base, batch, kv_head, key_start, tile * KEYS, v_row, num_keys, KEYS, D, DESCRIPTORS)
        is_hidden = (tile >= tl.cdiv(SINK, KEYS)) & (tile < opens)
        total = tl.where(is_hidden, hidden_total, seen_total)
        delta = tl.where(is_hidden, hidden_delta, seen_delta)
        keys = (tile * KEYS + tl.arange(0, KEYS))[None, :]
        logits = tl.dot(q_tile, k_tile.T, input_precision="ieee") * scale - total[:, None]
        if EDGES:
            is_mixed = (tile >= SINK // KEYS) & (tile < opened) & (is_hidden ^ True)
            sees = (keys < SINK) | (keys // BLOCK > queries[:, None] // BLOCK - LOCAL // BLOCK)
            if is_mixed:
                logits = tl.where(sees, logits, logits + (total - hidden_total)[:, None])
        if tile >= diagonal:
            logits = tl.where(keys <= queries[:, None], logits, float("-inf"))
        weights = tl.math.exp2(logits)
        excess = tl.dot(g_tile, v_tile.T, input_precision="ieee") - delta[:, None]
        if EDGES:
            if is_mixed:
                excess = tl.where(sees, excess, excess + (delta - hidden_delta)[:, None])
        q_grad = tl.dot((weights * excess).to(k_tile.dtype), k_tile, q_grad, input_precision="ieee")
    d_base = dq + start * d_batch + head.to(tl.int64) * d_head + query_start.to(tl.int64) * d_row
    store_rows(dq, d_base, 0, 0, row, d_row, is_real, q_grad * (scale * LN_2), QUERIES, D, False)
