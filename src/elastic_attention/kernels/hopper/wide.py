"""A consumer warpgroup of a wide query tile: three of them share a multiprocessor, 64 query rows each.

At head dim 64 exponentials take as long as matrix products, and two warpgroups in turns do not keep both units busy.
Three do, but then a warpgroup has 160 registers, too few for a product in flight beside its softmax: it awaits both
products of a step and leaves the overlap to the others. No key tile but the diagonal needs a mask: what is hidden from
a warpgroup it leaves out as a whole.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .layout import EARLY, HALF, HOLE, ROWS, STEPS, read_field
from .results import write_results
from .softmax import find_highest, shrink, weigh, weigh_next
from .steps import FIRST_TURN, NONE, State, arrive_both, start_scores, wait_both


@gluon.jit
def consume_wide(launched, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Attention of the rows [WHO * 64, WHO * 64 + 64) of every item that the producer announces."""
    buffers = launched.buffers
    barriers = launched.barriers
    records = buffers.records
    scale = launched.sizes.scale
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)

    if WHO == 2:
        arrive_both(FIRST_TURN)  # warpgroup 0 goes first
    item = 0
    number = 0  # of the next key tile, since the launch
    mbarrier.wait(barriers.item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    while steps > 0:
        slot = item & 1
        mbarrier.wait(barriers.q_full.index(slot), (item >> 1) & 1)
        following = number + steps
        early = read_field(records, slot, EARLY)
        hole = following
        if early > WHO:
            leave_out(number, launched, SHAPE, WHO)
            number += 1
        else:
            hole = gl.minimum(number + read_field(records, slot, HOLE), following)
        scores = compute_scores(launched, slot, number, SHAPE, WHO)
        # The rows of a half tile begin where its diagonal key tile does, or in the middle of it.
        rows = ((WHO - early) & 1) * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, scores.type.layout))[:, None]
        columns = gl.arange(0, ROWS, layout=gl.SliceLayout(0, scores.type.layout))[None, :]
        scores = gl.where(rows >= columns, scores, NONE)
        highest = find_highest(scores, scale)
        weights, total = weigh(scores, highest, scale)
        weights = gl.convert_layout(weights.to(buffers.q.dtype), WEIGHTS)
        state = State(gl.zeros([HALF, D], gl.float32, ACC), total, highest, weights, number)
        for tile in range(number + 1, hole):
            state = advance_wide(state, launched, slot, tile, SHAPE, WHO)
        if hole < following:
            leave_out(hole, launched, SHAPE, WHO)
        for tile in range(hole + 1, following):
            state = advance_wide(state, launched, slot, tile, SHAPE, WHO)
        vs = state.used % VS
        mbarrier.wait(barriers.v_full.index(vs), (state.used // VS) & 1)
        acc = warpgroup_mma(state.weights, buffers.v.index(vs).reshape([ROWS, D]), state.acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(barriers.v_free.index(vs), count=1)
        write_results(launched, slot, acc, state.total, state.highest, SHAPE, WHO)
        mbarrier.arrive(barriers.item_free.index(slot), count=1)
        number = following
        item += 1
        mbarrier.wait(barriers.item_full.index(item & 1), (item >> 1) & 1)
        steps = read_field(records, item & 1, STEPS)
    if WHO == 0:
        wait_both(FIRST_TURN)  # takes the last turn back, so that the barrier ends empty
    tma.store_wait(0)


@gluon.jit
def leave_out(number, launched, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Free a key tile that is hidden from this warpgroup, and pass its turn on."""
    barriers = launched.barriers
    ks = number % SHAPE.key_stages
    vs = number % SHAPE.value_stages
    # Who frees a tile before it is there frees the one before it.
    mbarrier.wait(barriers.k_full.index(ks), (number // SHAPE.key_stages) & 1)
    mbarrier.wait(barriers.v_full.index(vs), (number // SHAPE.value_stages) & 1)
    wait_both(FIRST_TURN + WHO)
    arrive_both(FIRST_TURN + (WHO + 1) % 3)
    mbarrier.arrive(barriers.k_free.index(ks), count=1)
    mbarrier.arrive(barriers.v_free.index(vs), count=1)


@gluon.jit
def compute_scores(launched, slot, number, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Q Kᵀ of an item's first key tile for this warpgroup."""
    barriers = launched.barriers
    ks = number % SHAPE.key_stages
    mbarrier.wait(barriers.k_full.index(ks), (number // SHAPE.key_stages) & 1)
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(launched.buffers, slot, ks, SHAPE, WHO)
    arrive_both(FIRST_TURN + (WHO + 1) % 3)
    scores = warpgroup_mma_wait(0, deps=(promise,))
    mbarrier.arrive(barriers.k_free.index(ks), count=1)
    return scores


@gluon.jit
def advance_wide(state, launched, slot, number, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Scores of the key tile of that number, values of the one before it that this warpgroup reads."""
    buffers = launched.buffers
    barriers = launched.barriers
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    vs = state.used % VS
    ks = number % KS
    mbarrier.wait(barriers.k_full.index(ks), (number // KS) & 1)
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(buffers, slot, ks, SHAPE, WHO)
    mbarrier.wait(barriers.v_full.index(vs), (state.used // VS) & 1)
    acc = warpgroup_mma(state.weights, buffers.v.index(vs).reshape([ROWS, SHAPE.head_dim]), state.acc, is_async=True)
    arrive_both(FIRST_TURN + (WHO + 1) % 3)
    scores, acc = warpgroup_mma_wait(0, deps=(promise, acc))
    mbarrier.arrive(barriers.k_free.index(ks), count=1)
    mbarrier.arrive(barriers.v_free.index(vs), count=1)
    weights, sums, growth = weigh_next(scores, state.highest, launched.sizes.scale, state.weights.dtype)
    total = state.total * gl.exp2(-growth) + sums
    acc = shrink(acc, growth)
    weights = gl.convert_layout(weights.to(state.weights.dtype), state.weights.type.layout)
    return State(acc, total, state.highest + growth, weights, number)
