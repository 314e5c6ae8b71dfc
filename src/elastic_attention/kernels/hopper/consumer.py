"""A consumer warpgroup: 64 query rows of every tile, scores and values on the tensor cores, softmax in between.

Two of them take turns: while one issues its matrix products the other computes its softmax. Inside a warpgroup the
scores of the next key tile are computed while the values of the present one are still being added, across the border
between two work items as well.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from . import schedule
from .layout import (
    DENSE_START,
    DENSE_STOP,
    FIRST_ROW,
    GAP,
    HALF,
    HEAD,
    LAST_KEYS,
    LIST_HEAD,
    LIST_ROW,
    MASKED_FROM,
    OPENING,
    ROW,
    ROWS,
    SINK,
    STEPS,
    STOP_ROW,
    TILE,
    WINDOW,
    locate_list,
    read_field,
)

key_tile = gluon.jit(schedule.key_tile)
is_visible = gluon.jit(schedule.is_visible)

LN_2 = gl.constexpr(0.6931471805599453)
FIRST_TURN = gl.constexpr(8)  # hardware barriers; Triton itself counts up from 0
CLEARED = gl.constexpr(10)
NONE = gl.constexpr(float("-inf"))


@gluon.jit
def _wait_both(name):  # type: ignore[no-untyped-def]
    gl.inline_asm_elementwise(
        "bar.sync $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _arrive_both(name):  # type: ignore[no-untyped-def]
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _scores(q_s, k_s, slot, stage, WHO: gl.constexpr, D: gl.constexpr):  # type: ignore[no-untyped-def]
    """Start Q Kᵀ of a key tile; the result is a promise."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    q = q_s.index(2 * slot + WHO).reshape([HALF, D])
    k = k_s.index(stage).reshape([ROWS, D]).permute((1, 0))
    nothing = gl.zeros([HALF, ROWS], gl.float32, LAYOUT)
    return warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)


@gluon.jit
def _soften(scores, highest, scale, PARTIAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Weights in base 2, their sums per row (a part for each of the four threads of a row), and the new maxima."""
    new_highest = gl.maximum(highest, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - new_highest[:, None])
    if PARTIAL:
        # Column 8 a + 2 b + c lies in thread b of a row.
        sums = gl.sum(gl.sum(weights.reshape([HALF, ROWS // 8, 4, 2]), 3), 1)
    else:
        sums = gl.sum(weights, 1)
    return weights, sums, new_highest


@gluon.jit
def _hide(scores, slot, records, block, step, is_listed, WHO: gl.constexpr, SHAPE: gl.constexpr):  # type: ignore[no-untyped-def]
    """-inf where a query does not read a key of the tile at `step`."""
    LAYOUT: gl.constexpr = scores.type.layout
    rows = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    columns = gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    if not SHAPE.has_edges:
        return gl.where(rows >= columns, scores, NONE)
    tile = read_field(records, slot, TILE)
    source = key_tile(step, tile, read_field(records, slot, OPENING), read_field(records, slot, GAP))
    queries = tile * ROWS + rows
    keys = source * ROWS + columns
    dense_start = read_field(records, slot, DENSE_START)
    dense_stop = read_field(records, slot, DENSE_STOP)
    seen = is_visible(
        queries, keys, read_field(records, slot, SINK), read_field(records, slot, WINDOW), block, dense_start, dense_stop
    )
    return gl.where((keys <= queries) & (seen | is_listed), scores, NONE)


@gluon.jit
def consume(descs, memory, barriers, tensors, spans, sizes, pattern, SHAPE: gl.constexpr, WHO: gl.constexpr):  # type: ignore[no-untyped-def]
    """Attention of the rows [WHO * 64, WHO * 64 + 64) of every item that the producer announces."""
    q_desc, k_desc, v_desc, o_desc = descs
    q_s, k_s, v_s, o_s, records = memory
    item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free = barriers
    out, lse, modes, counter, list_counts, list_indices, dense_rows = tensors
    num_queries, num_keys, num_q_heads, num_kv_heads, num_sequences, num_tiles, list_rows, list_room, scale = sizes
    num_sink_tokens, local_window, block = pattern
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    MINE: gl.constexpr = FIRST_TURN + WHO
    OTHERS: gl.constexpr = FIRST_TURN + 1 - WHO
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, ACC)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16]))

    if WHO == 1:
        _arrive_both(OTHERS)  # warpgroup 0 goes first
    item = 0
    used = 0  # key tiles whose scores are done
    mbarrier.wait(item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    lowest = gl.full([HALF], NONE, gl.float32, SCORE_ROWS)
    total, highest, p = _begin(memory, barriers, steps, lowest, block, scale, WEIGHTS, WHO, SHAPE)
    while steps > 0:
        slot = item & 1
        row = read_field(records, slot, ROW) + WHO * HALF
        head = read_field(records, slot, HEAD)
        acc = gl.zeros([HALF, D], gl.float32, ACC)
        first_row = 0
        stop_row = num_queries
        if SHAPE.is_ragged:
            first_row = read_field(records, slot, FIRST_ROW)
            stop_row = read_field(records, slot, STOP_ROW)
            keys = read_field(records, slot, LAST_KEYS)
            if keys < ROWS:
                mbarrier.wait(v_full.index(used % VS), (used // VS) & 1)
                _clear_rows(v_s.index(used % VS).reshape([ROWS, D]), keys, WHO, D)
        plain_steps = steps
        if SHAPE.has_edges:
            plain_steps = gl.minimum(read_field(records, slot, MASKED_FROM), steps)
        for _ in range(1, plain_steps):
            acc, total, highest, p, used = _step(
                acc, total, highest, p, used, memory, barriers, slot, block, 0, False, scale, WHO, SHAPE, False
            )
        if SHAPE.has_edges:
            cursor = -1
            entries = list_indices
            entry = -1
            list_head = read_field(records, slot, LIST_HEAD)
            if SHAPE.has_lists and SHAPE.has_dense_rows:
                if list_head >= 0:
                    list_row = read_field(records, slot, LIST_ROW)
                    entries += locate_list(list_head, read_field(records, slot, TILE), list_row, list_room)
                    cursor = gl.load(list_counts + list_head * list_rows + list_row) - 2
            for step in range(plain_steps, steps):
                is_listed = False
                if SHAPE.has_lists and SHAPE.has_dense_rows:
                    entry = gl.load(entries + cursor, mask=cursor >= 0, other=-1).to(gl.int32)
                    is_listed = entry == read_field(records, slot, TILE) - step
                    cursor -= is_listed.to(gl.int32)
                acc, total, highest, p, used = _step(
                    acc, total, highest, p, used, memory, barriers, slot, block, step, is_listed, scale, WHO, SHAPE, True
                )
        mbarrier.arrive(q_free.index(slot), count=1)
        mbarrier.arrive(item_free.index(slot), count=1)

        # The last values of this item together with the first scores of the next one.
        item += 1
        slot = item & 1
        mbarrier.wait(item_full.index(slot), (item >> 1) & 1)
        steps = read_field(records, slot, STEPS)
        mbarrier.wait(q_full.index(slot), (item >> 1) & 1, pred=steps > 0)
        vs = used % VS
        v_phase = (used // VS) & 1
        used += 1
        ks = used % KS
        mbarrier.wait(k_full.index(ks), (used // KS) & 1, pred=steps > 0)
        _wait_both(MINE)
        promise = _scores(q_s, k_s, slot, ks, WHO, D)  # of old keys, and ignored, if there is no next item
        mbarrier.wait(v_full.index(vs), v_phase)
        acc = warpgroup_mma(p, v_s.index(vs).reshape([ROWS, D]), acc, is_async=True)
        _arrive_both(OTHERS)
        scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
        mbarrier.arrive(k_free.index(ks), count=1, pred=steps > 0)
        scores = _hide(scores, slot, records, block, 0, True, WHO, SHAPE)
        weights, next_total, next_highest = _soften(scores, lowest, scale, SHAPE.partial)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_free.index(vs), count=1)
        p = gl.convert_layout(weights.to(q_desc.dtype), WEIGHTS)

        rows = row + gl.arange(0, HALF, layout=ACC_ROWS)
        is_real = (rows >= first_row) & (rows < stop_row)
        is_kept = is_real
        if SHAPE.partial:
            sums = gl.convert_layout(gl.sum(total, 1), ACC_ROWS)
        else:
            sums = gl.convert_layout(total, ACC_ROWS)
        log_total = gl.convert_layout(highest, ACC_ROWS) * LN_2 + gl.log(sums)
        result = acc * (1.0 / sums)[:, None]
        if SHAPE.is_ragged:
            result = gl.where(is_real[:, None], result, 0.0)
            log_total = gl.where(is_real, log_total, NONE)
            if not SHAPE.is_packed:
                is_kept = (rows >= 0) & (rows < num_queries)
        gl.store(lse + head.to(gl.int64) * num_queries + rows, log_total, mask=is_kept)
        result = result.to(q_desc.dtype)
        element = head // num_q_heads
        q_head = head - element * num_q_heads
        if SHAPE.is_packed:
            if (row >= first_row) & (row + HALF <= stop_row):
                _store_whole(o_desc, o_s, result, element, q_head, row, WHO, D)
            else:
                _store_real(out + q_head * D, num_q_heads * D, rows, is_kept, result, D)
        else:
            _store_whole(o_desc, o_s, result, element, q_head, row, WHO, D)
        total = next_total
        highest = next_highest
    if WHO == 0:
        _wait_both(MINE)  # takes the last turn back, so that the barrier ends empty
    tma.store_wait(0)


@gluon.jit
def _begin(memory, barriers, steps, lowest, block, scale, WEIGHTS: gl.constexpr, WHO: gl.constexpr, SHAPE: gl.constexpr):  # type: ignore[no-untyped-def]
    """The scores of the very first item."""
    q_s, k_s, v_s, o_s, records = memory
    item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free = barriers
    mbarrier.wait(q_full.index(0), 0, pred=steps > 0)
    mbarrier.wait(k_full.index(0), 0, pred=steps > 0)
    _wait_both(FIRST_TURN + WHO)
    promise = _scores(q_s, k_s, 0, 0, WHO, SHAPE.head_dim)
    _arrive_both(FIRST_TURN + 1 - WHO)
    scores = warpgroup_mma_wait(0, deps=(promise,))
    mbarrier.arrive(k_free.index(0), count=1, pred=steps > 0)
    scores = _hide(scores, 0, records, block, 0, True, WHO, SHAPE)
    weights, total, highest = _soften(scores, lowest, scale, SHAPE.partial)
    return total, highest, gl.convert_layout(weights.to(q_s.dtype), WEIGHTS)


@gluon.jit
def _step(acc, total, highest, p, used, memory, barriers, slot, block, step, is_listed, scale, WHO: gl.constexpr, SHAPE: gl.constexpr, IS_MASKED: gl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of the next key tile, values of the present one."""
    q_s, k_s, v_s, o_s, records = memory
    item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free = barriers
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    ACC: gl.constexpr = acc.type.layout
    vs = used % VS
    v_phase = (used // VS) & 1
    used += 1
    ks = used % KS
    mbarrier.wait(k_full.index(ks), (used // KS) & 1)
    _wait_both(FIRST_TURN + WHO)
    promise = _scores(q_s, k_s, slot, ks, WHO, D)
    mbarrier.wait(v_full.index(vs), v_phase)
    acc = warpgroup_mma(p, v_s.index(vs).reshape([ROWS, D]), acc, is_async=True)
    _arrive_both(FIRST_TURN + 1 - WHO)
    scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
    if not SHAPE.late:
        mbarrier.arrive(k_free.index(ks), count=1)
    if IS_MASKED:
        scores = _hide(scores, slot, records, block, step, is_listed, WHO, SHAPE)
    weights, sums, new_highest = _soften(scores, highest, scale, SHAPE.partial)
    shrink = gl.exp2(highest - new_highest)
    if SHAPE.partial:
        total = total * gl.convert_layout(shrink, gl.SliceLayout(1, sums.type.layout))[:, None] + sums
    else:
        total = total * shrink + sums
    acc = warpgroup_mma_wait(0, deps=(acc,))
    if SHAPE.late:
        mbarrier.arrive(k_free.index(ks), count=1)
    mbarrier.arrive(v_free.index(vs), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, ACC))[:, None]
    p = gl.convert_layout(weights.to(p.dtype), p.type.layout)
    return acc, total, new_highest, p, used


@gluon.jit
def _store_whole(o_desc, o_s, result, element, q_head, row, WHO: gl.constexpr, D: gl.constexpr):  # type: ignore[no-untyped-def]
    """Through the copy engine, which goes on by itself and leaves out rows that the tensor does not have."""
    tma.store_wait(0)
    o_s.index(WHO).reshape([HALF, D]).store(result)
    fence_async_shared()
    tma.async_copy_shared_to_global(o_desc, [element, q_head, row, 0], o_s.index(WHO))


@gluon.jit
def _store_real(base, stride, rows, is_kept, result, D: gl.constexpr):  # type: ignore[no-untyped-def]
    """Row by row, for a tile that shares its rows with another sequence."""
    columns = gl.arange(0, D, layout=gl.SliceLayout(0, result.type.layout))[None, :]
    gl.store(base + rows.to(gl.int64)[:, None] * stride + columns, result, mask=is_kept[:, None] & (columns >= 0))


@gluon.jit
def _clear_rows(values, keys, WHO: gl.constexpr, D: gl.constexpr):  # type: ignore[no-untyped-def]
    """Zero this warpgroup's half of a value tile from row `keys` on, and wait for the other half.

    Behind the last key lies memory of others, and 0 * nan = nan.
    """
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // D, D // 8], [4, 1], [1, 0])
    mine = values.slice(WHO * HALF, HALF)
    rows = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, LAYOUT))
    x = mine.load(LAYOUT)
    mine.store(gl.where((rows < keys)[:, None], x, gl.zeros_like(x)))
    fence_async_shared()
    _wait_both(CLEARED)
