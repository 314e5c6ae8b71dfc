"""XAttention's scores on the GPU: a causal matrix product of strided rows, reduced to a number per key block.

With the queries read backwards inside of a stride, sum over i < s of Q[s x + s - 1 - i] . K[s y + i] is one product
over s * D features, so the kernel is a plain matrix product that walks through tokens instead of columns. What it
leaves is the base-2 log-sum-exp of every (strided row, key block).

Shape letters: B sequences, T queries, S keys, H query heads, G KV heads, D head dim, s stride.
"""

import triton
import triton.language as tl

from .tiles import load_span

# Numbers that change from prompt to prompt: a kernel of its own for every multiple of 16 would gain nothing.
_VARYING = ["num_queries", "num_keys", "num_columns", "num_groups", "first_row", "num_rows"]


@triton.jit
def find_dense_rows(dense_rows, sequence, HAS_DENSE: tl.constexpr):
    """Positions [start, stop) of the queries that do not vote."""
    start = tl.load(dense_rows + sequence * 2) if HAS_DENSE else 0
    stop = tl.load(dense_rows + sequence * 2 + 1) if HAS_DENSE else 0
    return start, stop


@triton.jit
def _is_edge_within(edge, low, high, STRIDE: tl.constexpr):
    """Whether a position cuts one of the strides [low, high) in two."""
    return (edge % STRIDE != 0) & (edge // STRIDE >= low) & (edge // STRIDE < high)


@triton.jit
def _mark_tokens(tokens, start, stop, STRIDE: tl.constexpr):
    """Bit i of every stride that begins at `tokens`: does its token i lie in [start, stop)?"""
    low = tl.minimum(tl.maximum(start - tokens, 0), STRIDE)
    high = tl.minimum(tl.maximum(stop - tokens, 0), STRIDE)
    one = tokens * 0 + 1
    return ((one << high) - 1) & ~((one << low) - 1)


@triton.jit(do_not_specialize=_VARYING)
def score_strides(
    q,
    k,
    q_described,  # q and k in tiles, or anything
    k_described,
    modes,
    scores,
    spans,
    dense_rows,
    q_strides,
    k_strides,
    num_queries,
    num_keys,
    num_kv_heads,
    num_columns,  # tiles of keys
    num_groups,  # groups of tiles of rows
    first_row,  # of this launch, in query blocks of a sequence
    num_rows,
    pitch,  # key blocks of a row of scores
    scale,  # of the strided scores, base 2
    LISTS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads of a KV head
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOTS: tl.constexpr,  # strides of a block
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # no stride is cut anywhere, the host knows
    IS_DESCRIBED: tl.constexpr,  # tiles without a cut stride come through the descriptors
):
    """One tile of strided rows times strided keys of one head; scores is (B * H, num_rows * SLOTS, pitch) float32."""
    # Neighbouring programs share keys: tiles of rows of all heads of a KV head run fastest, then tiles of keys.
    program = tl.program_id(0)
    per_head = num_groups * num_columns * GROUP
    pair = program // per_head
    if tl.load(modes + pair) != LISTS:
        return
    sequence = pair // num_kv_heads
    kv_head = pair % num_kv_heads
    program = program % per_head
    column = (program // GROUP) % num_columns * BN
    unit = (program // (GROUP * num_columns)) * GROUP + program % GROUP
    head = kv_head * HEADS + unit % HEADS

    query_start, query_length, key_start, key_length = load_span(
        spans[0], spans[1], spans[2], spans[3], sequence, num_queries, num_keys, HAS_SPANS
    )
    dense_start, dense_stop = find_dense_rows(dense_rows, sequence, HAS_DENSE)
    offset = key_length - query_length
    first = (offset // (STRIDE * SLOTS) + first_row) * SLOTS  # strides count positions of the sequence
    low = first + (unit // HEADS) * BM
    stop = tl.minimum(tl.cdiv(key_length, STRIDE), first + num_rows * SLOTS)
    high = tl.minimum(low + BM, stop)
    has_no_voter = (low * STRIDE >= dense_start) & (high * STRIDE <= dense_stop)
    if (low >= stop) | (column >= high) | has_no_voter:
        return

    rows = low + tl.arange(0, BM)
    columns = column + tl.arange(0, BN)
    # Rows of other programs and rows before the first query only need an address that exists.
    queries = tl.minimum(tl.maximum(rows, offset // STRIDE), stop - 1) * STRIDE
    keys = tl.minimum(columns, (key_length - 1) // STRIDE) * STRIDE
    element = tl.where(IS_PACKED, 0, sequence).to(tl.int64)
    features = tl.arange(0, BK)
    q += element * q_strides[0] + head.to(tl.int64) * q_strides[1]
    k += element * k_strides[0] + kv_head.to(tl.int64) * k_strides[1]
    q_places = q + (queries + (query_start - offset)).to(tl.int64)[:, None] * q_strides[2] + features[None, :]
    k_places = k + (keys + key_start).to(tl.int64)[None, :] * k_strides[2] + features[:, None]
    q_marks = queries
    k_marks = keys
    is_cut = False
    if not IS_WHOLE:
        # A prompt that ends inside of a stride must not see the response's keys in the rest of it.
        hidden_stop = tl.minimum(dense_stop, dense_start // STRIDE * STRIDE + STRIDE)
        q_marks = _mark_tokens(queries, offset, key_length, STRIDE)
        k_marks = _mark_tokens(keys, 0, key_length, STRIDE)
        is_cut = _is_edge_within(key_length, low, low + BM, STRIDE)
        is_cut |= _is_edge_within(key_length, column, column + BN, STRIDE)
        if HAS_DENSE:
            q_marks &= ~_mark_tokens(queries, dense_start, dense_stop, STRIDE)
            k_marks &= ~_mark_tokens(keys, dense_start, hidden_stop, STRIDE)
            is_cut |= _is_edge_within(dense_start, low, low + BM, STRIDE)
            is_cut |= _is_edge_within(dense_stop, low, low + BM, STRIDE)
            is_cut |= (dense_start // STRIDE >= column) & (dense_start // STRIDE < column + BN)
    total = tl.zeros([BM, BN], tl.float32)
    if IS_DESCRIBED and not is_cut:
        for step in tl.range(0, STRIDE * (D // BK)):
            i = step // (D // BK)
            d = (step % (D // BK)) * BK
            x = q_described.load([sequence, head, low - offset // STRIDE, (STRIDE - 1 - i) * q_strides[2] + d])
            y = k_described.load([sequence, kv_head, column, i * k_strides[2] + d])
            total = tl.dot(x.reshape([BM, BK]), y.reshape([BN, BK]).T, total)
    else:
        for step in tl.range(0, STRIDE * (D // BK)):
            i = step // (D // BK)
            d = (step % (D // BK)) * BK
            x_places = q_places + ((STRIDE - 1 - i) * q_strides[2] + d)
            y_places = k_places + (i * k_strides[2] + d)
            if IS_WHOLE:
                x = tl.load(x_places)
                y = tl.load(y_places)
            else:
                x = tl.load(x_places, mask=(((q_marks >> (STRIDE - 1 - i)) & 1) != 0)[:, None], other=0.0)
                y = tl.load(y_places, mask=(((k_marks >> i) & 1) != 0)[None, :], other=0.0)
            total = tl.dot(x, y, total, input_precision="ieee")

    total = total * scale
    if column + BN - 1 > low:
        total = tl.where(columns[None, :] <= rows[:, None], total, float("-inf"))
    peak = tl.maximum(tl.max(total, 1), -1e30)  # finite for rows whose keys all lie ahead
    mass = tl.sum(tl.reshape(tl.exp2(total - peak[:, None]), [BM, BN // SLOTS, SLOTS]), 2)
    blocks = column // SLOTS + tl.arange(0, BN // SLOTS)
    line = (sequence * num_kv_heads * HEADS + head).to(tl.int64) * num_rows * SLOTS + (rows - first)
    places = scores + line[:, None] * pitch + blocks[None, :]
    tl.store(places, tl.log2(mass) + peak[:, None], mask=(rows < stop)[:, None])
