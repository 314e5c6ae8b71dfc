"""The gradient of heads that read chosen key blocks: XAttention's lists, and the window of triangle heads.

Two sweeps as in `gradient_sweeps`, for one path and without its windows: a bool for every pair of blocks says what is
read, and tiles of pairs that are not read are passed over. Queries in `dense_rows` read every key.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, M query blocks, N key blocks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..arguments import LOG2_E, count_tiles, name_spans
from ..device import on_its_device
from ..kept import compute_once
from ..spans import Spans
from .shapes import choose_gradient_shapes, shape_grid
from .tiles import LN_2, load_real_rows, load_span, locate_tile, place_program, store_rows

_NOBODY = tl.constexpr(1.0e30)  # the sum of a row without a query: no weight, and finite


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    show_blocks: Callable[..., Tensor],
    lists: tuple[Tensor, ...],
    dense_rows: Tensor | None,
    block_size: int,
    scale: float,
    spans: Spans | None,
) -> Tensor:
    """Attention by a kernel without a gradient of its own, differentiable in q, k and v.

    Args:
        attend: (q, k, v) -> out like q and lse (B, H, T) float32, natural logarithm.
        show_blocks: makes `reads` of `differentiate_blocks` from `lists`, in the backward.
        lists: kept as autograd keeps tensors, so a layer that is computed again does not hold them in between.
        q, k, v, dense_rows, block_size, scale, spans: as in `differentiate_blocks`.
    """
    return _AttendBlocks.apply(q, k, v, attend, show_blocks, dense_rows, block_size, scale, spans, *lists)


class _AttendBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        show_blocks: Callable[..., Tensor],
        dense_rows: Tensor | None,
        block_size: int,
        scale: float,
        spans: Spans | None,
        *lists: Tensor,
    ) -> Tensor:
        out, lse = compute_once(lambda: attend(q, k, v))
        ctx.save_for_backward(q, k, v, out, lse, *lists)
        ctx.show_blocks, ctx.places = show_blocks, (dense_rows, block_size, scale, spans)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *lists = ctx.saved_tensors
        gradients = differentiate_blocks(grad, q, k, v, out, lse, ctx.show_blocks(*lists), *ctx.places)
        return *gradients, *[None] * (6 + len(lists))


@on_its_device
def differentiate_blocks(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    reads: Tensor,
    dense_rows: Tensor | None,
    block_size: int,
    scale: float,
    spans: Spans | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the choice of blocks has none.

    Args:
        grad, out: (B, H, T, D), the gradient of the output and the output.
        lse: (B, H, T) float32, natural logarithm.
        reads: (sequences, H or 1, M, N) bool: does query block first + r of a sequence read key block n? See
            `block_lists` for `first`.
        dense_rows: (sequences, 2) int32, positions [start, stop) of queries that read every key; None = nobody.
        block_size: tokens of a block, a multiple of 16.
        q, k, v, scale, spans: as in `attend_triton`.
    """
    (num_q_heads, num_queries, head_dim), (num_kv_heads, num_keys) = q.shape[1:], k.shape[1:3]
    # Rows of no sequence get no gradient, and nobody writes them.
    make = torch.empty if spans is None else torch.zeros
    dq, dk, dv = (
        make(x.shape[0], x.shape[2], x.shape[1], head_dim, dtype=x.dtype, device=x.device).transpose(1, 2)
        for x in (q, k, v)
    )
    if not q.numel():
        return dq, dk.zero_(), dv.zero_()
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    delta = (out.float() * grad.float()).sum(-1).contiguous()
    total = (lse * LOG2_E).contiguous()
    seen = reads.expand(-1, num_q_heads, -1, -1).view(torch.uint8)
    group_size, row_bytes = num_q_heads // num_kv_heads, 2 * num_keys * head_dim * k.element_size()
    by_keys, by_queries = choose_gradient_shapes(q)
    if head_dim > 128 and q.element_size() == 2:  # two gradients of 64 keys do not fit the registers
        by_keys = replace(by_keys, queries=64, keys=32)
    widest = block_size & -block_size  # tiles are powers of two that lie inside of one block
    common: dict[str, Any] = dict(
        GROUP=group_size,
        BLOCK=block_size,
        D=head_dim,
        DENSE=dense_rows is not None,
        RAGGED=spans is not None,
        PACKED=spans is not None and spans.is_packed,
    )
    for kernel, shape, results, programs in (
        (sweep_block_queries, by_keys, (dk, dv), 1),
        (sweep_block_keys, by_queries, (dq,), group_size),
    ):
        queries, keys = min(shape.queries, widest), min(shape.keys, widest)
        is_by_keys = kernel is sweep_block_queries
        tiles = triton.cdiv(num_keys, keys) if is_by_keys else count_tiles(num_queries, num_keys, spans, queries)
        kernel[shape_grid(len(reads) * num_kv_heads, programs, tiles, row_bytes)](
            *(q, k, v, grad, *results, total, delta, seen, seen if dense_rows is None else dense_rows),
            *name_spans(spans, q),
            *(stride for x in (q, k, v, grad, results[0]) for stride in x.stride()[:3]),
            *seen.stride()[:3],
            num_queries,
            num_keys,
            num_kv_heads,
            scale * LOG2_E,
            QUERIES=queries,
            KEYS=keys,
            **common,
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    return dq, dk, dv


@triton.jit
def _find_dense(dense_rows, sequence, DENSE: tl.constexpr):
    """Positions [start, stop) of the sequence's queries that read everything."""
    if DENSE:
        return tl.load(dense_rows + 2 * sequence).to(tl.int32), tl.load(dense_rows + 2 * sequence + 1).to(tl.int32)
    return sequence * 0, sequence * 0


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def sweep_block_queries(
    q, k, v, grad, dk, dv, totals, deltas, seen, dense_rows,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    d_batch, d_head, d_row, s_sequence, s_head, s_row, T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, DENSE: tl.constexpr, RAGGED: tl.constexpr,
    PACKED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys, from the queries of all heads of its KV head. Tiles in between are transposed."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    sequence, kv_head, _, tile = place_program(num_kv_heads, 1)
    query_start, query_length, key_start, num_keys = load_span(
        query_starts, query_lengths, key_starts, key_lengths, sequence, T, S, RAGGED
    )
    first_key = tile * KEYS
    if first_key >= num_keys:
        return
    batch = sequence * 0 if PACKED else sequence
    first_real = num_keys - query_length
    keys = first_key + tl.arange(0, KEYS)
    begin = tl.maximum(first_key, first_real) // QUERIES
    count = tl.where(query_length > 0, tl.maximum(tl.cdiv(num_keys, QUERIES) - begin, 0), 0)
    dense_start, dense_stop = _find_dense(dense_rows, sequence, DENSE)

    k_base = k + batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    k_tile = load_real_rows(k_base, first_key, k_row, num_keys, KEYS, D)
    v_tile = load_real_rows(v_base, first_key, v_row, num_keys, KEYS, D)
    q_base = q + batch.to(tl.int64) * q_batch + query_start.to(tl.int64) * q_row
    g_base = grad + batch.to(tl.int64) * g_batch + query_start.to(tl.int64) * g_row
    seen += sequence.to(tl.int64) * s_sequence + first_key // BLOCK
    k_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    v_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    for i in tl.range(0, GROUP * count):
        head = kv_head * GROUP + i // count
        first = (begin + i % count) * QUERIES
        line = first // BLOCK - first_real // BLOCK
        is_read = tl.load(seen + head.to(tl.int64) * s_head + tl.maximum(line, 0) * s_row) != 0
        if is_read | ((first < dense_stop) & (first + QUERIES > dense_start)):
            row = first - first_real
            q_tile = load_real_rows(q_base + head.to(tl.int64) * q_head, row, q_row, query_length, QUERIES, D)
            g_tile = load_real_rows(g_base + head.to(tl.int64) * g_head, row, g_row, query_length, QUERIES, D)
            queries = first + tl.arange(0, QUERIES)
            is_real = (queries >= first_real) & (queries < num_keys)
            places = (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + query_start + queries - first_real
            total = tl.load(totals + places, mask=is_real, other=_NOBODY)
            delta = tl.load(deltas + places, mask=is_real, other=0.0)
            logits = tl.dot(k_tile, q_tile.T, input_precision="ieee") * scale - total[None, :]
            sees = (is_read | ((queries >= dense_start) & (queries < dense_stop)))[None, :]
            logits = tl.where(sees & (keys[:, None] <= queries[None, :]), logits, float("-inf"))
            weights = tl.math.exp2(logits)
            v_grad = tl.dot(weights.to(q_tile.dtype), g_tile, v_grad, input_precision="ieee")
            excess = tl.dot(v_tile, g_tile.T, input_precision="ieee") - delta[None, :]
            k_grad = tl.dot((weights * excess).to(q_tile.dtype), q_tile, k_grad, input_precision="ieee")
    d_start = batch.to(tl.int64) * d_batch + kv_head.to(tl.int64) * d_head + key_start.to(tl.int64) * d_row
    is_kept = keys < num_keys
    store_rows(0, dk + d_start, batch, kv_head, first_key, S, d_row, is_kept, k_grad * scale * LN_2, KEYS, D, False)
    store_rows(0, dv + d_start, batch, kv_head, first_key, S, d_row, is_kept, v_grad, KEYS, D, False)


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def sweep_block_keys(
    q, k, v, grad, dq, totals, deltas, seen, dense_rows,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    d_batch, d_head, d_row, s_sequence, s_head, s_row, T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, DENSE: tl.constexpr, RAGGED: tl.constexpr,
    PACKED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries, from the keys it reads."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
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
    dense_start, dense_stop = _find_dense(dense_rows, sequence, DENSE)
    is_dense = (queries >= dense_start) & (queries < dense_stop)
    has_dense = (first < dense_stop) & (first + QUERIES > dense_start)
    places = (batch * num_kv_heads * GROUP + head).to(tl.int64) * T + queries - shift
    total = tl.load(totals + places, mask=is_real, other=_NOBODY)
    delta = tl.load(deltas + places, mask=is_real, other=0.0)
    start = batch.to(tl.int64)
    q_base = q + start * q_batch + head.to(tl.int64) * q_head + query_start.to(tl.int64) * q_row
    g_base = grad + start * g_batch + head.to(tl.int64) * g_head + query_start.to(tl.int64) * g_row
    k_base = k + start * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + start * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    q_tile = load_real_rows(q_base, row, q_row, query_length, QUERIES, D)
    g_tile = load_real_rows(g_base, row, g_row, query_length, QUERIES, D)
    line = tl.maximum(first // BLOCK - first_real // BLOCK, 0)
    seen += sequence.to(tl.int64) * s_sequence + head.to(tl.int64) * s_head + line * s_row
    q_grad = tl.zeros([QUERIES, WIDTH], tl.float32)
    for tile in tl.range(0, tl.cdiv(tl.minimum(first + QUERIES, num_keys), KEYS)):
        first_key = sequence * 0 + tile * KEYS  # a tensor in Triton's interpreter too
        is_read = tl.load(seen + first_key // BLOCK) != 0
        if is_read | has_dense:
            k_tile = load_real_rows(k_base, first_key, k_row, num_keys, KEYS, D)
            v_tile = load_real_rows(v_base, first_key, v_row, num_keys, KEYS, D)
            keys = first_key + tl.arange(0, KEYS)
            logits = tl.dot(q_tile, k_tile.T, input_precision="ieee") * scale - total[:, None]
            logits = tl.where(
                (is_read | is_dense)[:, None] & (keys[None, :] <= queries[:, None]), logits, float("-inf")
            )
            weights = tl.math.exp2(logits)
            excess = tl.dot(g_tile, v_tile.T, input_precision="ieee") - delta[:, None]
            q_grad = tl.dot((weights * excess).to(k_tile.dtype), k_tile, q_grad, input_precision="ieee")
    d_base = dq + start * d_batch + head.to(tl.int64) * d_head + query_start.to(tl.int64) * d_row
    store_rows(0, d_base, batch, head, row, T, d_row, is_real, q_grad * scale * LN_2, QUERIES, D, False)
