"""Scores, softmax and values of one key tile: the steps that a consumer warpgroup takes.

Two warpgroups take turns: while one issues its matrix products the other computes its softmax. Inside a warpgroup the
scores of the next key tile are computed while the values of the present one are still being added.
"""

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
    LIST_HEAD,
    OPENING,
    ROWS,
    SINK,
    TILE,
    WINDOW,
    read_field,
)

key_tile = gluon.jit(schedule.key_tile)
find_opening = gluon.jit(schedule.find_opening)
is_visible = gluon.jit(schedule.is_visible)

FIRST_TURN = gl.constexpr(8)  # hardware barriers; Triton itself counts up from 0
CLEARED = gl.constexpr(10)
NONE = gl.constexpr(float("-inf"))


@gluon.jit
def wait_both(name):
    """Wait until both consumers are at the named barrier."""
    gl.inline_asm_elementwise("bar.sync $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def arrive_both(name):
    """Arrive at the named barrier without waiting."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.u32 $0, 0;", "=r,r", [name], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def start_scores(q_s, k_s, slot, stage, WHO: gl.constexpr, D: gl.constexpr):
    """Start Q Kᵀ of a key tile; the result is a promise."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    q = q_s.index(2 * slot + WHO).reshape([HALF, D])
    k = k_s.index(stage).reshape([ROWS, D]).permute((1, 0))
    nothing = gl.zeros([HALF, ROWS], gl.float32, LAYOUT)
    return warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)


@gluon.jit
def soften(scores, highest, scale):
    """Weights in base 2, their sums per row (a part for each of the four threads of a row), and the new maxima."""
    new_highest = gl.maximum(highest, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - new_highest[:, None])
    # Column 8 a + 2 b + c lies in thread b of a row: these sums cross no thread. Those of a row meet at the end.
    sums = gl.sum(gl.sum(weights.reshape([HALF, ROWS // 8, 4, 2]), 3), 1)
    return weights, sums, new_highest


@gluon.jit
def has_list(records, slot, SHAPE: gl.constexpr):
    """Whether the item is ruled by a list, which always names the diagonal."""
    if SHAPE.has_edges and SHAPE.has_lists:
        return gl.where(read_field(records, slot, LIST_HEAD) >= 0, 1, 0)
    else:
        return 0


@gluon.jit
def hide(scores, slot, records, block, step, is_listed, WHO: gl.constexpr, SHAPE: gl.constexpr):
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
    opening = find_opening(queries, read_field(records, slot, WINDOW), block, dense_start, dense_stop) * (1 - is_listed)
    seen = is_visible(keys, read_field(records, slot, SINK), opening)
    return gl.where((keys <= queries) & seen, scores, NONE)


@gluon.jit
def begin(memory, barriers, steps, lowest, block, scale, WEIGHTS: gl.constexpr, WHO: gl.constexpr, SHAPE: gl.constexpr):
    """The scores of the very first item."""
    q_s, k_s, v_s, o_s, records = memory
    item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free = barriers
    mbarrier.wait(q_full.index(0), 0, pred=steps > 0)
    mbarrier.wait(k_full.index(0), 0, pred=steps > 0)
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(q_s, k_s, 0, 0, WHO, SHAPE.head_dim)
    arrive_both(FIRST_TURN + 1 - WHO)
    scores = warpgroup_mma_wait(0, deps=(promise,))
    mbarrier.arrive(k_free.index(0), count=1, pred=steps > 0)
    scores = hide(scores, 0, records, block, 0, has_list(records, 0, SHAPE), WHO, SHAPE)
    weights, total, highest = soften(scores, lowest, scale)
    return total, highest, gl.convert_layout(weights.to(q_s.dtype), WEIGHTS)


@gluon.jit
def advance(
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
    WHO: gl.constexpr,
    SHAPE: gl.constexpr,
    IS_MASKED: gl.constexpr,
):
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
    wait_both(FIRST_TURN + WHO)
    promise = start_scores(q_s, k_s, slot, ks, WHO, D)
    mbarrier.wait(v_full.index(vs), v_phase)
    acc = warpgroup_mma(p, v_s.index(vs).reshape([ROWS, D]), acc, is_async=True)
    arrive_both(FIRST_TURN + 1 - WHO)
    scores, acc = warpgroup_mma_wait(1, deps=(promise, acc))
    mbarrier.arrive(k_free.index(ks), count=1)
    if IS_MASKED:
        scores = hide(scores, slot, records, block, step, is_listed, WHO, SHAPE)
    weights, sums, new_highest = soften(scores, highest, scale)
    shrink = gl.exp2(highest - new_highest)
    total = total * gl.convert_layout(shrink, gl.SliceLayout(1, sums.type.layout))[:, None] + sums
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(v_free.index(vs), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, ACC))[:, None]
    p = gl.convert_layout(weights.to(p.dtype), p.type.layout)
    return acc, total, new_highest, p, used


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
    wait_both(CLEARED)
