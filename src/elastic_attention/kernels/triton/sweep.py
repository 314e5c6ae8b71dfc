"""Running softmax of a tile of queries over tiles of keys."""

import triton
import triton.language as tl

from .tiles import load_rows

# Where a maximum starts: below every real score, yet finite, for a row that has seen no key must not compute inf - inf.
LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def add_keys(acc, total, highest, scores, values, scale):
    """One step of running softmax in base 2: fold a tile of raw scores (M, N) and its values (N, D) into the state."""
    weights, shrink, total, highest = weigh(total, highest, scores, scale)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, total, highest


@triton.jit
def weigh(total, highest, scores, scale):
    """The part of a step that wants no values: weights (M, N), the factor of earlier results, sums and maxima."""
    new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - new_highest[:, None])
    shrink = tl.math.exp2(highest - new_highest)
    return weights, shrink, total * shrink + tl.sum(weights, 1), new_highest


@triton.jit
def hide(
    scores, queries, first, reads_all, is_listed, has_window,
    SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """-inf wherever a query does not read a key of the tile that starts at `first`.

    MASK names the rule: "causal", "seen" (the block rule if the head has_window, what is listed, or all) or
    "hidden" (what the block rule does not show).
    """
    keys = (first + tl.arange(0, scores.shape[1]))[None, :]
    rows = queries[:, None]
    reads = keys <= rows
    if MASK != "causal":
        is_seen = (keys < SINK) | (keys // BLOCK > rows // BLOCK - LOCAL // BLOCK)
        reads &= is_seen ^ True if MASK == "hidden" else is_seen & has_window | reads_all | is_listed
    return tl.where(reads, scores, float("-inf"))


@triton.jit
def sweep(
    acc, total, highest, q_tile, k_desc, v_desc, k_base, v_base, k_stride, v_stride, batch, head, start, limit,
    queries, reads_all, scale, count, last, before, jump, free_from, free_to, list_base, list_count,
    is_named, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold `count` key tiles, `last` at the end, into the running softmax of a tile of queries.

    The i-th is tile i while i < before, then tile i + jump; or, if `is_named`, the next one of the list. Tiles in
    [free_from, free_to) are read without a mask, the others under `hide`'s rule MASK. With rule "causal" only those
    from `free_to` on are masked, with "none" no tile.
    """
    PARTS: tl.constexpr = LIST_BLOCK // KEYS if LIST_BLOCK else 1
    # Behind the last key lies memory of others, and 0 * nan = nan: values of that tile have to be cleared.
    has_tail = False
    if DESCRIPTORS and RAGGED:
        has_tail = (count > 0) & ((last + 1) * KEYS > limit)
    entry = -1
    if LIST_BLOCK:
        entry = tl.load(list_base, mask=list_count > 0, other=-1).to(tl.int32)
    cursor = 0
    for i in tl.range(0, tl.where(has_tail, count - 1, count)):
        tile = i + tl.where(i < before, 0, jump)
        is_listed = False
        if LIST_BLOCK:  # entries are read one tile ahead
            tile = tl.where(is_named, entry * PARTS + i % PARTS, tile)
            if MASK == "seen":
                is_listed = entry == tile // PARTS
                cursor += (is_listed & (tile % PARTS == PARTS - 1)).to(tl.int32)
            else:
                cursor = (i + 1) // PARTS
            has_next = cursor < list_count if MASK == "seen" else is_named & (i + 1 < count)
            entry = tl.load(list_base + cursor, mask=has_next, other=-1).to(tl.int32)
        k_tile = load_rows(k_desc, k_base, batch, head, start, tile * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
        is_free = tile < free_to
        if MASK != "causal":
            is_free &= tile >= free_from
        if MASK != "none" and is_free ^ True:
            scores = hide(scores, queries, tile * KEYS, reads_all, is_listed, list_count == 0, SINK, LOCAL, BLOCK, MASK)
        v_tile = load_rows(v_desc, v_base, batch, head, start, tile * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
        acc, total, highest = add_keys(acc, total, highest, scores, v_tile, scale)
    if has_tail:
        k_tile = load_rows(k_desc, k_base, batch, head, start, last * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
        if MASK != "none":
            scores = hide(
                scores, queries, last * KEYS, reads_all, list_count > 0, list_count == 0, SINK, LOCAL, BLOCK, MASK
            )
        v_tile = load_rows(v_desc, v_base, batch, head, start, last * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
        is_real = (last * KEYS + tl.arange(0, KEYS) < limit)[:, None]
        acc, total, highest = add_keys(acc, total, highest, scores, tl.where(is_real, v_tile, 0.0), scale)
    return acc, total, highest


@triton.jit
def sweep_ahead(
    acc, total, highest, q_tile, k_desc, v_desc, k_base, v_base, k_stride, v_stride, batch, head, limit, queries, scale,
    count, before, jump, D: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """As `sweep`, for one or more key tiles of which the last alone is masked, by causality.

    The scores of the next tile come before the values of the present one, so that while the device still adds those
    the next softmax begins, and its keys have long been asked for.
    """
    tile = tl.where(before > 0, 0, jump)
    k_tile = load_rows(k_desc, k_base, batch, head, 0, tile * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
    scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
    for i in tl.range(1, count):
        v_tile = load_rows(v_desc, v_base, batch, head, 0, tile * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
        weights, shrink, total, highest = weigh(total, highest, scores, scale)
        tile = i + tl.where(i < before, 0, jump)
        k_tile = load_rows(k_desc, k_base, batch, head, 0, tile * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
    scores = hide(scores, queries, tile * KEYS, True, False, False, 0, 0, 1, "causal")
    v_tile = load_rows(v_desc, v_base, batch, head, 0, tile * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
    return add_keys(acc, total, highest, scores, v_tile, scale)
