"""XAttention's choice on the GPU: block masses from scores, a threshold without a sort, ascending lists.

Floats that are not negative sort like their bits. So the mass of the lightest block that is still needed is found by
bisection on 31 bits, each step one sum over the row; equal masses are taken by index. Exactly the order that
`kernels.xattention` defines.
"""

import triton
import triton.language as tl

from .strided_scores import find_dense_rows
from .tiles import load_span

_VARYING = ["num_queries", "num_keys", "first_row", "num_rows", "all_rows", "capacity", "share"]


@triton.jit(do_not_specialize=_VARYING)
def select_blocks(
    scores,
    modes,
    counts,
    indices,
    spans,
    dense_rows,
    num_queries,
    num_keys,
    num_kv_heads,
    first_row,
    num_rows,  # of this launch
    all_rows,  # M
    capacity,  # E
    pitch,
    share,  # of the mass, or of the blocks
    LISTS: tl.constexpr,
    HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,  # power of two, at least `pitch`
    BY_COUNT: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HAS_DENSE: tl.constexpr,
):
    """One query block of one head: reads SLOTS lines of `scores`, writes its count and its list."""
    line = tl.program_id(0)
    row = num_rows - 1 - tl.program_id(1)  # long rows first
    if tl.load(modes + line // HEADS) != LISTS:
        return
    sequence = line // (num_kv_heads * HEADS)
    _, query_length, _, key_length = load_span(
        spans[0], spans[1], spans[2], spans[3], sequence, num_queries, num_keys, HAS_SPANS
    )
    dense_start, dense_stop = find_dense_rows(dense_rows, sequence, HAS_DENSE)
    offset = key_length - query_length
    first = offset // (STRIDE * SLOTS)
    last = first + first_row + row  # the diagonal
    if last * (STRIDE * SLOTS) >= key_length:
        return

    # A strided row votes if it holds a query of the sequence outside of the dense rows.
    slots = tl.arange(0, SLOTS)
    start = tl.maximum((last * SLOTS + slots) * STRIDE, offset)
    stop = tl.minimum((last * SLOTS + slots) * STRIDE + STRIDE, key_length)
    dense = tl.maximum(tl.minimum(stop, dense_stop) - tl.maximum(start, dense_start), 0)
    is_voter = stop - start > dense
    blocks = tl.arange(0, WIDTH)
    is_causal = blocks <= last
    places = scores + (line.to(tl.int64) * num_rows + row) * SLOTS * pitch + slots[:, None] * pitch + blocks[None, :]
    x = tl.load(places, mask=is_voter[:, None] & is_causal[None, :], other=float("-inf"))
    x = tl.exp2(x - tl.maximum(tl.max(x, 1), -1e30)[:, None])
    mass = tl.sum(x / tl.where(is_voter, tl.sum(x, 1), 1.0)[:, None], 0)

    is_forced = (blocks == 0) | (blocks == last)
    is_other = is_causal & (is_forced == 0)
    worth = tl.where(is_causal, 1.0, 0.0) if BY_COUNT else mass
    # A share that gives a whole number of blocks must not become one more by rounding: a GPU does not round the product
    # before it subtracts.
    wanted = share * (1.0 - 2.0**-20) if BY_COUNT else share
    need = wanted * tl.sum(worth, 0) - tl.sum(tl.where(is_forced, worth, 0.0), 0)
    worth = tl.where(is_other, worth, 0.0)
    bits = tl.where(is_other, mass.to(tl.int32, bitcast=True), -1)
    least = 0
    above = 0x7F800000
    for _ in range(31):
        middle = least + (above - least) // 2
        is_enough = tl.sum(tl.where(bits >= middle, worth, 0.0), 0) >= need
        least = tl.where(is_enough, middle, least)
        above = tl.where(is_enough, above, middle)
    heavier = tl.sum(tl.where(bits > least, worth, 0.0), 0)
    is_tie = bits == least
    rank = (tl.cumsum(is_tie.to(tl.int32), 0) - 1).to(tl.float32)
    tie_worth = tl.max(tl.where(is_tie, worth, 0.0), 0)
    is_kept = is_forced | (bits > least) | (is_tie & (heavier + rank * tie_worth < need))
    has_no_voter = tl.max(is_voter.to(tl.int32), 0) == 0
    is_kept = (is_kept | has_no_voter) & is_causal

    ordered = tl.cumsum(is_kept.to(tl.int32), 0)
    room = last.to(tl.int64) * (last + 1) // 2 - first.to(tl.int64) * (first + 1) // 2
    tl.store(indices + line.to(tl.int64) * capacity + room + ordered - 1, blocks.to(tl.int16), mask=is_kept)
    tl.store(counts + line * all_rows + first_row + row, tl.sum(is_kept.to(tl.int32), 0))
