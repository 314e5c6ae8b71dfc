"""Prefill: every head of every sequence in one launch, each in the mode that device memory names.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...config import StreamingConfig
from .. import modes as mode_numbers
from ..arguments import count_tiles, make_outputs, name_lists, name_spans, scale_for_base_two
from ..block_lists import BlockLists
from ..device import on_its_device
from ..kept import compute_once
from ..spans import Spans
from .backward import Paths, differentiate
from .shapes import (
    TileShape,
    choose_shape,
    fit_blocks,
    holds_whole_blocks,
    shape_grid,
    takes_descriptors,
)
from .sweep import LOWEST, sweep, sweep_ahead
from .tiles import (
    LN_2,
    can_describe,
    describe,
    find_window,
    load_real_rows,
    locate_tile,
    store_rows,
)

_FULL = tl.constexpr(mode_numbers.FULL)
_LISTS = tl.constexpr(mode_numbers.LISTS)


def attend_triton(
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
        q: (B, H, T, D), k, v: (B, G, S, D) float32, float16 or bfloat16, any strides with a contiguous last dimension.
            Packed: B = 1 and the sequences follow each other along T and S.
        modes: (sequences, G) integers of any width on the device, see `kernels.modes`; never read by the host.
        config: what STREAMING heads read.
        scale: factor of the scores, positive.
        spans: where the sequences lie; None = every element holds T queries that are the last of S keys.
        lists: what LISTS heads read, in blocks of a power of two from 16 on.
        dense_rows: (sequences, 2) int32, positions [start, stop) whose queries read every key in TRIANGLE and LISTS
            heads.

    Returns:
        out, shape and dtype of q, memory order (B, T, H, D); lse float32 (B, H, T), natural logarithm.
        Rows that belong to no sequence: 0 and -inf.

    Raises:
        ValueError: `scale` is not positive, or a gradient is wanted with `lists` or `dense_rows`.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        if lists is not None or dense_rows is not None:
            raise ValueError(
                "XAttention and triangle heads have no gradient here; leave out return_lse, or use torch.no_grad()."
            )
        return _Attend.apply(q, k, v, modes, config, scale, spans)
    is_plain = holds_whole_blocks(config.block_size, spans) and lists is None and dense_rows is None
    shape = choose_shape(q, is_plain=is_plain)
    if lists is not None:
        shape = fit_blocks(shape, lists.block_size)
    return launch_prefill(q, k, v, modes, config, scale, spans, lists, dense_rows, shape, takes_descriptors(q))


class _Attend(torch.autograd.Function):
    """FULL and STREAMING heads are blended heads whose route is 0 or 1, which only ever need one of the paths."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        modes: Tensor,
        config: StreamingConfig,
        scale: float,
        spans: Spans | None,
    ) -> tuple[Tensor, Tensor]:
        shape = choose_shape(q, is_plain=holds_whole_blocks(config.block_size, spans))
        given = q, k, v, modes, config, scale, spans, None, None, shape, takes_descriptors(q)
        out, lse = compute_once(lambda: launch_prefill(*given))
        ctx.save_for_backward(q, k, v, modes, out, lse)
        ctx.config, ctx.scale, ctx.spans = config, scale, spans
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, modes, out, lse = ctx.saved_tensors
        paths = Paths(sparse=out, full=out, sparse_lse=lse, full_lse=lse)
        route = (modes == mode_numbers.STREAMING).float()
        dq, dk, dv, _ = differentiate(grad, q, k, v, route, paths, ctx.config, ctx.scale, ctx.spans)
        return dq, dk, dv, None, None, None, None


@on_its_device
def launch_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    lists: BlockLists | None,
    dense_rows: Tensor | None,
    shape: TileShape,
    use_descriptors: bool,
) -> tuple[Tensor, Tensor]:
    """`attend_triton` with a given tile shape."""
    factor = scale_for_base_two(scale)
    num_q_heads, num_queries, head_dim = q.shape[1:]
    num_kv_heads, num_keys = k.shape[1:3]
    list_block = lists.block_size if lists is not None else 0
    if list_block % shape.queries or list_block % shape.keys:
        raise ValueError(
            f"lists.block_size={list_block} must be a multiple of {shape.queries} (queries of a tile) and {shape.keys}."
        )
    out, lse = make_outputs(q)
    if not out.numel():
        return out, lse
    sources: tuple[Any, ...] = (q, k, v, out)
    is_described = use_descriptors and can_describe(q, k, v, out)
    if is_described:
        rows = shape.queries, shape.keys, shape.keys, shape.queries
        sources = tuple(describe(x, n) for x, n in zip(sources, rows, strict=True))
    num_tiles = count_tiles(num_queries, num_keys, spans, shape.queries)
    group_size = num_q_heads // num_kv_heads
    row_bytes = 2 * num_keys * head_dim * k.element_size()
    list_counts, list_indices, list_rows, list_room = name_lists(lists, q)
    _prefill[shape_grid(len(modes) * num_kv_heads, group_size, num_tiles, row_bytes)](
        *sources,
        *(q, k, v, out, lse, modes),
        *name_spans(spans, q),
        list_counts,
        list_indices,
        dense_rows if dense_rows is not None else q,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        out.stride(2),
        num_queries,
        num_keys,
        len(modes),
        num_kv_heads,
        list_rows,
        list_room,
        factor,
        GROUP=group_size,
        SINK=config.num_sink_tokens,
        LOCAL=config.local_window,
        BLOCK=config.block_size,
        D=head_dim,
        QUERIES=shape.queries,
        KEYS=shape.keys,
        DESCRIPTORS=is_described,
        RAGGED=spans is not None,
        PACKED=spans is not None and spans.is_packed,
        LIST_BLOCK=list_block,
        DENSE_ROWS=dense_rows is not None,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return out, lse


@triton.jit(do_not_specialize=["T", "S", "num_sequences", "num_kv_heads", "list_rows", "list_room"])
def _prefill(
    q_desc, k_desc, v_desc, out_desc, q, k, v, out, lse, modes, query_starts, query_lengths, key_starts, key_lengths,
    list_counts, list_indices, dense_rows, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    out_row, T, S, num_sequences, num_kv_heads, list_rows, list_room, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
    LIST_BLOCK: tl.constexpr, DENSE_ROWS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    # A tile may hold pairs that are read and pairs that are not, other than by causality.
    EDGES: tl.constexpr = DENSE_ROWS or BLOCK % QUERIES != 0 or BLOCK % KEYS != 0
    # Square tiles of whole sequences: the last one alone is masked, so scores can come a tile ahead of their values.
    AHEAD: tl.constexpr = KEYS == QUERIES and not (EDGES or RAGGED or LIST_BLOCK)
    (
        sequence, batch, kv_head, head, behind, first, shift, first_real, num_keys, first_kept, stop_kept, key_start
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, QUERIES, RAGGED, PACKED,
    )  # fmt: skip
    if PACKED and behind == tl.num_programs(1) - 1:
        _clear_gaps(
            out + head * D, out_row, lse + head.to(tl.int64) * T, query_starts, sequence, num_sequences,
            num_keys - shift, T, QUERIES, D,
        )  # fmt: skip
    if first + QUERIES <= first_kept:
        return

    queries = first + tl.arange(0, QUERIES)
    mode = tl.load(modes + sequence * num_kv_heads + kv_head)
    row = first - shift
    if DESCRIPTORS:
        q_tile = q_desc.load([batch, head, row, 0]).reshape(QUERIES, WIDTH)
    else:
        q_base = q + batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        q_tile = load_real_rows(q_base, row, q_row, T, QUERIES, D)
    is_dense = mode == _FULL
    stop = tl.cdiv(tl.minimum(first + QUERIES, num_keys), KEYS)
    diagonal = first // KEYS
    opens, free_from = find_window(first, QUERIES, KEYS, LOCAL, BLOCK)
    before = tl.minimum(tl.cdiv(SINK, KEYS), opens)
    jump = opens - before
    is_mixed = False
    if DENSE_ROWS:
        is_routed = mode >= _LISTS
        dense_first, dense_stop = tl.load(dense_rows + 2 * sequence), tl.load(dense_rows + 2 * sequence + 1)
        begin, end = tl.maximum(first, first_real), tl.minimum(first + QUERIES, num_keys)
        is_dense |= is_routed & (dense_first <= begin) & (dense_stop >= end)
        is_mixed = is_routed & (dense_first < end) & (dense_stop > begin) & (is_dense ^ True)
    walks_all = is_dense | is_mixed
    if walks_all:
        before, jump = stop, 0
    count = stop - jump
    list_base, list_count, is_named = list_indices, 0, False
    if LIST_BLOCK and (mode == _LISTS) & (is_dense ^ True):
        block, first_block = first // LIST_BLOCK, first_real // LIST_BLOCK
        list_line = (sequence * num_kv_heads * GROUP + head).to(tl.int64)
        list_count = tl.load(list_counts + list_line * list_rows + block - first_block)
        list_base += list_line * list_room + block * (block + 1) // 2 - first_block * (first_block + 1) // 2
        is_named = is_mixed ^ True
        free_from = tl.where(is_mixed, stop, 0)
        if is_named:  # the last block is the diagonal's, of which this tile may read a part
            count = (list_count - block - 1) * (LIST_BLOCK // KEYS) + stop
    if is_dense:
        free_from = 0
    reads_all = free_from == 0  # no tile before the diagonal is masked: what lies there is read
    if DENSE_ROWS:
        reads_all |= ((queries >= dense_first) & (queries < dense_stop) & is_routed)[:, None]
    if (first + QUERIES <= first_real) | (first >= num_keys):
        count = 0

    k_base = k + batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    acc, total = tl.zeros([QUERIES, WIDTH], tl.float32), tl.zeros([QUERIES], tl.float32)
    highest = tl.full([QUERIES], LOWEST, tl.float32)
    if AHEAD:
        # Computed rows are multiplied from registers, loaded ones from shared memory, whose bandwidth 64 rows use up.
        q_tile *= tl.where(num_keys > 0, 1.0, 0.0).to(q_tile.dtype)  # by one, which the compiler cannot know
        acc, total, highest = sweep_ahead(
            acc, total, highest, q_tile, k_desc, v_desc, k_base, v_base, k_row, v_row, batch, kv_head, num_keys,
            queries, scale, count, before, jump, D, KEYS, DESCRIPTORS,
        )  # fmt: skip
    else:
        acc, total, highest = sweep(
            acc, total, highest, q_tile, k_desc, v_desc, k_base, v_base, k_row, v_row, batch, kv_head, key_start,
            num_keys, queries, reads_all, scale, count, stop - 1, before, jump, free_from, diagonal,
            list_base, list_count, is_named, SINK, LOCAL, BLOCK, "seen" if EDGES else "causal", D,
            KEYS, DESCRIPTORS, RAGGED, LIST_BLOCK,
        )  # fmt: skip
    is_real = (queries >= first_real) & (queries < num_keys)
    is_kept = (queries >= first_kept) & (queries < stop_kept)
    result = tl.where(is_real[:, None], acc * (1.0 / total)[:, None], 0.0)
    # Tiles of a packed sequence end in rows of others; elsewhere all rows of the tensor are this sequence's to write.
    WHOLE: tl.constexpr = DESCRIPTORS and not PACKED
    out_base = out + batch.to(tl.int64) * T * out_row + head * D
    store_rows(out_desc, out_base, batch, head, row, T, out_row, is_kept, result, QUERIES, D, WHOLE)
    log_sum = tl.where(is_real, (highest + tl.math.log2(total)) * LN_2, float("-inf"))
    lse_base = lse + (batch * num_kv_heads * GROUP + head).to(tl.int64) * T
    tl.store(lse_base + row + tl.arange(0, QUERIES), log_sum, mask=is_kept)


@triton.jit
def _clear_gaps(
    out_base, out_row, lse_base, query_starts, sequence, num_sequences, stop_row, T,
    ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Rows between a packed sequence and the next one, and those before the first, belong to nobody."""
    is_last = sequence == num_sequences - 1
    until = tl.where(is_last, T, tl.load(query_starts + sequence + 1, mask=is_last ^ True, other=0))
    ahead = tl.where(sequence == 0, tl.load(query_starts), 0)
    nothing = tl.zeros([ROWS, triton.next_power_of_2(D)], tl.float32)
    for i in range(0, tl.cdiv(ahead, ROWS) + tl.cdiv(tl.maximum(until - stop_row, 0), ROWS)):
        row = tl.where(i * ROWS < ahead, i * ROWS, stop_row + (i - tl.cdiv(ahead, ROWS)) * ROWS)
        rows = row + tl.arange(0, ROWS)
        is_gap = rows < tl.where(i * ROWS < ahead, ahead, until)
        store_rows(out_base, out_base, 0, 0, row, T, out_row, is_gap, nothing, ROWS, D, False)
        tl.store(lse_base + rows, tl.full([ROWS], float("-inf"), tl.float32), mask=is_gap)
