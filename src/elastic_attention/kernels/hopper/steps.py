"""Scores, softmax and values of one key tile: the steps that a consumer warpgroup takes.

Two warpgroups take turns: while one issues its matrix products the other computes its softmax. Inside a warpgroup the
scores of the next key tile are computed while the values of the present one are still being added.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from . import schedule
from .layout import (
    DENSE_START,
    DENSE_STOP,
    GAP,
    HALF,
    LIST_COUNT,
    OPENING,
    ROWS,
    SINK,
    TILE,
    WINDOW,
    read_field,
)
from .softmax import find_highest, shrink, weigh, weigh_next

key_tile = gluon.jit(schedule.key_tile)
find_opening = gluon.jit(schedule.find_opening)
is_visible = gluon.jit(schedule.is_visible)

FIRST_TURN = gl.constexpr(8)  # hardware barriers; Triton itself counts up from 0
CLEARED = gl.constexpr(11)
NONE = gl.constexpr(float("-inf"))


class State(NamedTuple):
    """What a warpgroup knows of its rows after some key tiles.

    The outputs so far and the sums of their weights, both relative to a reference near the highest score; the weights
    of the newest key tile, whose values are still missing; the number of that tile since the launch.
    """

    acc: Any
    total: Any
    highest: Any
    weights: Any
    used: Any


@gluon.jit
def wait_both(name):
    """Wait at the named barrier until another consumer has arrived there."""
    gl.inline_asm_elementwise("bar.sync $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def meet_both(name):
    """As `wait_both` where both consumers wait: each does in code of its own, which the form above does not allow."""
    gl.inline_asm_elementwise(
        "barrier.sync $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def arrive_both(name):
    """Arrive at the named barrier without waiting."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def start_scores(buffers, slot, stage, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Start Q Kᵀ of a key tile; the result is a promise."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    q = buffers.q.index(SHAPE.consumers * slot + WHO).reshape([HALF, SHAPE.head_dim])
    k = buffers.k.index(stage).reshape([ROWS, SHAPE.head_dim]).permute((1, 0))
    nothing = gl.zeros([HALF, ROWS], gl.float32, LAYOUT)
    return warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)


@gluon.jit
def has_list(records, slot, SHAPE: gl.constexpr):
    """Whether the item is ruled by a list, which always names the diagonal."""
    if SHAPE.has_edges and SHAPE.has_lists:
        return gl.where(read_field(records, slot, LIST_COUNT) > 0, 1, 0)
    else:
        return 0


@gluon.jit
def hide(scores, launched, slot, step, is_listed, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """-inf where a query does not read a key of the tile at `step`."""
    LAYOUT: gl.constexpr = scores.type.layout
    rows = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    columns = gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    if SHAPE.is_hidden:
        return scores
    if not SHAPE.has_edges:
        return gl.where(rows >= columns, scores, NONE)
    records = launched.buffers.records
    tile = read_field(records, slot, TILE)
    source = key_tile(step, tile, read_field(records, slot, OPENING), read_field(records, slot, GAP))
    queries = tile * ROWS + rows
    keys = source * ROWS + columns
    dense_start = read_field(records, slot, DENSE_START)
    dense_stop = read_field(records, slot, DENSE_STOP)
    window = read_field(records, slot, WINDOW)
    opening = find_opening(queries, window, launched.sizes.block, dense_start, dense_stop) * (1 - is_listed)
    seen = is_visible(keys, read_field(records, slot, SINK), opening)
    return gl.where((keys <= queries) & seen, scores, NONE)


@gluon.jit
def begin(launched, steps, WEIGHTS: gl.constexpr, SHAPE: gl.constexpr, WHO: gl.constexpr):
    """Sums, maxima and weights of the first key tile of the very first item."""
    barriers = launched.barriers
    mbarrier.wait(barriers.q_full.index(0), 0, pred=steps > 0)
    mbarrier.wait(barriers.k_full.index(0), 0, pred=steps > 0)
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(launched.buffers, 0, 0, SHAPE, WHO)
    arrive_both(FIRST_TURN + 1 - WHO)
    scores = warpgroup_mma_wait(0, deps=(promise,))
    mbarrier.arrive(barriers.k_free.index(0), count=1, pred=steps > 0)
    scores = hide(scores, launched, 0, 0, has_list(launched.buffers.records, 0, SHAPE), SHAPE, WHO)
    highest = find_highest(scores, launched.sizes.scale)
    weights, total = weigh(scores, highest, launched.sizes.scale)
    return total, highest, gl.convert_layout(weights.to(launched.buffers.q.dtype), WEIGHTS)


@gluon.jit
def advance(
    state, launched, slot, step, is_listed, SHAPE: gl.constexpr, WHO: gl.constexpr, IS_MASKED: gl.constexpr
):  # fmt: skip
    """Scores of the next key tile, values of the present one."""
    buffers = launched.buffers
    barriers = launched.barriers
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    vs = state.used % VS
    v_phase = (state.used // VS) & 1
    used = state.used + 1
    ks = used % KS
    mbarrier.wait(barriers.k_full.index(ks), (used // KS) & 1)
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(buffers, slot, ks, SHAPE, WHO)
    mbarrier.wait(barriers.v_full.index(vs), v_phase)
    acc = warpgroup_mma(state.weights, buffers.v.index(vs).reshape([ROWS, D]), state.acc, is_async=True)
    arrive_both(FIRST_TURN + 1 - WHO)
    scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
    mbarrier.arrive(barriers.k_free.index(ks), count=1)
    if IS_MASKED:
        scores = hide(scores, launched, slot, step, is_listed, SHAPE, WHO)
        growth = gl.maximum(find_highest(scores, launched.sizes.scale) - state.highest, 0.0)
        weights, sums = weigh(scores, state.highest + growth, launched.sizes.scale)
    else:
        weights, sums, growth = weigh_next(scores, state.highest, launched.sizes.scale, state.weights.dtype)
    total = state.total * gl.exp2(-growth) + sums
    highest = state.highest + growth
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(barriers.v_free.index(vs), count=1)
    acc = shrink(acc, growth)
    weights = gl.convert_layout(weights.to(state.weights.dtype), state.weights.type.layout)
    return State(acc, total, highest, weights, used)


@gluon.jit
def clear_rows(values, keys, WHO: gl.constexpr, D: gl.constexpr):
    """Zero this warpgroup's half of a value tile from row `keys` on, and wait for the other half.

    Behind the last key lies memory of others, and 0 * nan = nan.
    """
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // D, D // 8], [4, 1], [1, 0])
    mine = values.slice(WHO * HALF, HALF)
    rows = WHO * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, LAYOUT))
    x = mine.load(LAYOUT)
    mine.store(gl.where((rows < keys)[:, None], x, gl.zeros_like(x)))
    fence_async_shared()
    meet_both(CLEARED)
