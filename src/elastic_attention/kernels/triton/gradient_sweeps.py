"""The two sweeps of the backward pass; `backward` says what the statistics L and d are."""

import triton
import triton.language as tl

from .tiles import LN_2, find_window, load_rows, load_span, locate_tile, place_program, store_rows

_NOBODY = tl.constexpr(1.0e30)  # L of a row without a query: no weight, and finite, since differences are taken


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def sweep_queries(
    q_desc, k_desc, v_desc, g_desc, q, k, v, grad, dk, dv, routes, statistics,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    d_batch, d_head, d_row, plane, T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """What one query head adds to dK and dV of a tile of keys. Tiles in between are transposed."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    EDGES: tl.constexpr = BLOCK % QUERIES != 0 or BLOCK % KEYS != 0
    sequence, head, _, tile = place_program(num_kv_heads * GROUP, 1)
    kv_head = head // GROUP
    query_start, query_length, key_start, num_keys = load_span(
        query_starts, query_lengths, key_starts, key_lengths, sequence, T, S, RAGGED
    )
    first_key = tile * KEYS
    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    if (first_key >= num_keys) | (route > 1):  # above 1: somebody else's
        return
    batch = sequence * 0 if PACKED else sequence
    first_real = num_keys - query_length
    shift = first_real - query_start
    keys = first_key + tl.arange(0, KEYS)
    last_block = (first_key + KEYS - 1) // BLOCK
    begin = tl.maximum(first_key, first_real) // QUERIES
    end = tl.cdiv(num_keys, QUERIES)
    if (route == 1) & (first_key >= SINK):
        end = tl.minimum(end, tl.cdiv((last_block + LOCAL // BLOCK) * BLOCK, QUERIES))
    count = tl.where(query_length > 0, tl.maximum(end - begin, 0), 0)

    k_base = k + batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    k_tile = load_rows(k_desc, k_base, batch, kv_head, key_start, first_key, k_row, num_keys, KEYS, D, DESCRIPTORS)
    v_tile = load_rows(v_desc, v_base, batch, kv_head, key_start, first_key, v_row, num_keys, KEYS, D, DESCRIPTORS)
    q_base = q + batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head + query_start.to(tl.int64) * q_row
    g_base = grad + batch.to(tl.int64) * g_batch + head.to(tl.int64) * g_head + query_start.to(tl.int64) * g_row
    head_statistics = statistics + (batch * num_kv_heads * GROUP + head).to(tl.int64) * T - shift
    k_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    v_grad = tl.zeros([KEYS, WIDTH], tl.float32)
    for i in tl.range(0, count):
        first = (begin + i) * QUERIES
        row = first - first_real
        q_tile = load_rows(q_desc, q_base, batch, head, query_start, row, q_row, query_length, QUERIES, D, DESCRIPTORS)
        g_tile = load_rows(g_desc, g_base, batch, head, query_start, row, g_row, query_length, QUERIES, D, DESCRIPTORS)
        queries = first + tl.arange(0, QUERIES)
        is_real = (queries >= first_real) & (queries < num_keys)
        places = head_statistics + queries
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
        if EDGES and is_mixed:
            excess = tl.where(sees, excess, excess + (delta - hidden_delta)[None, :])
        k_grad = tl.dot((weights * excess).to(q_tile.dtype), q_tile, k_grad, input_precision="ieee")
    d_start = batch.to(tl.int64) * d_batch + head.to(tl.int64) * d_head + key_start.to(tl.int64) * d_row
    is_kept = first_key + tl.arange(0, KEYS) < num_keys
    k_grad *= scale * LN_2
    store_rows(dk, dk + d_start, batch, head, first_key, S, d_row, is_kept, k_grad, KEYS, D, False)
    store_rows(dv, dv + d_start, batch, head, first_key, S, d_row, is_kept, v_grad, KEYS, D, False)


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def sweep_keys(
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
    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    if (first + QUERIES <= first_real) | (first >= num_keys) | (route > 1):
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
    if route == 1:
        before = tl.minimum(tl.cdiv(SINK, KEYS), opens)
        jump = opens - before
    q_grad = tl.zeros([QUERIES, WIDTH], tl.float32)
    for i in tl.range(0, stop - jump):
        tile = i + tl.where(i < before, 0, jump)
        k_tile = load_rows(
            k_desc, k_base, batch, kv_head, key_start, tile * KEYS, k_row, num_keys, KEYS, D, DESCRIPTORS
        )
        v_tile = load_rows(
            v_desc, v_base, batch, kv_head, key_start, tile * KEYS, v_row, num_keys, KEYS, D, DESCRIPTORS
        )
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
        if EDGES and is_mixed:
            excess = tl.where(sees, excess, excess + (delta - hidden_delta)[:, None])
        q_grad = tl.dot((weights * excess).to(k_tile.dtype), k_tile, q_grad, input_precision="ieee")
    d_base = dq + start * d_batch + head.to(tl.int64) * d_head + query_start.to(tl.int64) * d_row
    q_grad *= scale * LN_2
    store_rows(dq, d_base, batch, head, row, T, d_row, is_real, q_grad, QUERIES, D, False)
