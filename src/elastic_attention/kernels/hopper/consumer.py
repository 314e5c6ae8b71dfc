"""A consumer warpgroup: 64 query rows of every item, from the first scores to the results."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .layout import HALF, LAST_KEYS, LIST_HEAD, LIST_ROW, MASKED_FROM, ROWS, STEPS, TILE, locate_list, read_field
from .results import write_results
from .steps import (
    FIRST_TURN,
    NONE,
    advance,
    arrive_both,
    begin,
    clear_rows,
    has_list,
    hide,
    soften,
    start_scores,
    wait_both,
)


@gluon.jit
def consume(descs, memory, barriers, tensors, spans, sizes, pattern, SHAPE: gl.constexpr, WHO: gl.constexpr):
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
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16]))

    if WHO == 1:
        arrive_both(OTHERS)  # warpgroup 0 goes first
    item = 0
    used = 0  # key tiles whose scores are done
    mbarrier.wait(item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    lowest = gl.full([HALF], NONE, gl.float32, SCORE_ROWS)
    total, highest, p = begin(memory, barriers, steps, lowest, block, scale, WEIGHTS, WHO, SHAPE)
    while steps > 0:
        slot = item & 1
        acc = gl.zeros([HALF, D], gl.float32, ACC)
        if SHAPE.is_ragged:
            keys = read_field(records, slot, LAST_KEYS)
            if keys < ROWS:
                mbarrier.wait(v_full.index(used % VS), (used // VS) & 1)
                clear_rows(v_s.index(used % VS).reshape([ROWS, D]), keys, WHO, D)
        plain_steps = steps
        if SHAPE.has_edges:
            plain_steps = gl.minimum(read_field(records, slot, MASKED_FROM), steps)
        for _ in range(1, plain_steps):
            acc, total, highest, p, used = advance(
                acc, total, highest, p, used, memory, barriers, slot, block, 0, 0, scale, WHO, SHAPE, False
            )
        if SHAPE.has_edges:
            left = 0  # names on the list that have not come up yet; the diagonal did
            if SHAPE.has_lists and SHAPE.has_dense_rows:
                list_head = read_field(records, slot, LIST_HEAD)
                place = list_head * list_rows + read_field(records, slot, LIST_ROW)
                left = gl.load(list_counts + place, mask=list_head >= 0, other=1) - 1
            for step in range(plain_steps, steps):
                is_listed = 0
                if SHAPE.has_lists and SHAPE.has_dense_rows:
                    # Found anew at each step, because such tiles are rare and registers are too.
                    tile = read_field(records, slot, TILE)
                    list_head = read_field(records, slot, LIST_HEAD)
                    offset = locate_list(list_head, tile, read_field(records, slot, LIST_ROW), list_room)
                    entry = gl.load(list_indices + offset + (left - 1), mask=left > 0, other=-1).to(gl.int32)
                    is_listed = gl.where(entry == tile - step, 1, 0)
                    left -= is_listed
                acc, total, highest, p, used = advance(
                    acc,
                    total,
                    highest,
                    p,
                    used,
                    memory,
                    barriers,
                    slot,
                    block,
                    step,
                    is_listed,
                    scale,
                    WHO,
                    SHAPE,
                    True,
                )
        mbarrier.arrive(q_free.index(slot), count=1)

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
        wait_both(MINE)
        promise = start_scores(q_s, k_s, slot, ks, WHO, D)  # of old keys, and ignored, if there is no next item
        mbarrier.wait(v_full.index(vs), v_phase)
        acc = warpgroup_mma(p, v_s.index(vs).reshape([ROWS, D]), acc, is_async=True)
        arrive_both(OTHERS)
        scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
        mbarrier.arrive(k_free.index(ks), count=1, pred=steps > 0)
        scores = hide(scores, slot, records, block, 0, has_list(records, slot, SHAPE), WHO, SHAPE)
        weights, next_total, next_highest = soften(scores, lowest, scale)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_free.index(vs), count=1)
        p = gl.convert_layout(weights.to(q_desc.dtype), WEIGHTS)

        write_results(
            o_desc, out, lse, o_s, records, 1 - slot, acc, total, highest, num_queries, num_q_heads, WHO, SHAPE
        )
        mbarrier.arrive(item_free.index(1 - slot), count=1)
        total = next_total
        highest = next_highest
    if WHO == 0:
        wait_both(MINE)  # takes the last turn back, so that the barrier ends empty
    tma.store_wait(0)
