"""One of two consumer warpgroups: 64 query rows of every item, from the first scores to the results."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .layout import HALF, LAST_KEYS, LIST_COUNT, MASKED_FROM, ROWS, STEPS, TILE, read_field, read_place
from .results import write_results
from .softmax import find_highest, weigh
from .steps import (
    FIRST_TURN,
    State,
    advance,
    arrive_both,
    begin,
    clear_rows,
    has_list,
    hide,
    start_scores,
    wait_both,
)


@gluon.jit
def consume(launched, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Attention of the rows [WHO * 64, WHO * 64 + 64) of every item that the producer announces."""
    buffers = launched.buffers
    barriers = launched.barriers
    records = buffers.records
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    MINE: gl.constexpr = FIRST_TURN + WHO
    OTHERS: gl.constexpr = FIRST_TURN + 1 - WHO
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)

    if WHO == 1:
        arrive_both(OTHERS)  # warpgroup 0 goes first
    item = 0
    mbarrier.wait(barriers.item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    total, highest, weights = begin(launched, steps, WEIGHTS, SHAPE, WHO)
    used = 0
    while steps > 0:
        slot = item & 1
        state = State(gl.zeros([HALF, D], gl.float32, ACC), total, highest, weights, used)
        if SHAPE.is_ragged and not SHAPE.is_hidden:
            keys = read_field(records, slot, LAST_KEYS)
            if keys < ROWS:
                mbarrier.wait(barriers.v_full.index(used % VS), (used // VS) & 1)
                clear_rows(buffers.v.index(used % VS).reshape([ROWS, D]), keys, WHO, D)
        plain_steps = steps
        if SHAPE.has_edges:
            plain_steps = gl.minimum(read_field(records, slot, MASKED_FROM), steps)
        for _ in range(1, plain_steps):
            state = advance(state, launched, slot, 0, 0, SHAPE, WHO, False)
        if SHAPE.has_edges:
            left = 0  # names on the list that have not come up yet; the diagonal did
            if SHAPE.has_lists and SHAPE.has_dense_rows:
                left = read_field(records, slot, LIST_COUNT) - 1
            for step in range(plain_steps, steps):
                is_listed = 0
                if SHAPE.has_lists and SHAPE.has_dense_rows:
                    # Found anew at each step, because such tiles are rare and registers are too.
                    names = launched.tensors.list_indices + read_place(records, slot)
                    name = gl.load(names + (left - 1), mask=left > 0, other=-1).to(gl.int32)
                    is_listed = gl.where(name == read_field(records, slot, TILE) - step, 1, 0)
                    left -= is_listed
                state = advance(state, launched, slot, step, is_listed, SHAPE, WHO, True)

        # The last values of this item together with the first scores of the next one.
        item += 1
        slot = item & 1
        mbarrier.wait(barriers.item_full.index(slot), (item >> 1) & 1)
        steps = read_field(records, slot, STEPS)
        mbarrier.wait(barriers.q_full.index(slot), (item >> 1) & 1, pred=steps > 0)
        vs = state.used % VS
        v_phase = (state.used // VS) & 1
        used = state.used + 1
        ks = used % KS
        mbarrier.wait(barriers.k_full.index(ks), (used // KS) & 1, pred=steps > 0)
        wait_both(MINE)
        promise = start_scores(buffers, slot, ks, SHAPE, WHO)  # of old keys, and ignored, if there is no next item
        mbarrier.wait(barriers.v_full.index(vs), v_phase)
        acc = warpgroup_mma(state.weights, buffers.v.index(vs).reshape([ROWS, D]), state.acc, is_async=True)
        arrive_both(OTHERS)
        scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
        mbarrier.arrive(barriers.k_free.index(ks), count=1, pred=steps > 0)
        scores = hide(scores, launched, slot, 0, has_list(records, slot, SHAPE), SHAPE, WHO)
        highest = find_highest(scores, launched.sizes.scale)
        weights, total = weigh(scores, highest, launched.sizes.scale)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(barriers.v_free.index(vs), count=1)
        weights = gl.convert_layout(weights.to(buffers.q.dtype), WEIGHTS)
        write_results(launched, 1 - slot, acc, state.total, state.highest, SHAPE, WHO)
        mbarrier.arrive(barriers.item_free.index(1 - slot), count=1)
    if WHO == 0:
        wait_both(MINE)  # takes the last turn back, so that the barrier ends empty
    tma.store_wait(0)
