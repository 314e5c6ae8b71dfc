"""What the roles of the kernel share: its compile-time shape, its shared memory and the record of a work item."""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from . import schedule

ROWS = gl.constexpr(schedule.TILE)  # rows of a tile
HALF = gl.constexpr(schedule.TILE // 2)  # rows of a consumer warpgroup
EVERYTHING = gl.constexpr(schedule.EVERYTHING)

# Fields of the record of a work item, which the scheduler leaves for the others.
STEPS = gl.constexpr(0)  # key tiles to read; 0 = no more work
MASKED_FROM = gl.constexpr(1)
TILE = gl.constexpr(2)
OPENING = gl.constexpr(3)
GAP = gl.constexpr(4)
ROW = gl.constexpr(5)  # tensor row of the tile's first query
HEAD = gl.constexpr(6)  # element * number of query heads + query head
FIRST_ROW = gl.constexpr(7)  # rows of the sequence's queries
STOP_ROW = gl.constexpr(8)
LAST_KEYS = gl.constexpr(9)  # keys of the sequence in the diagonal tile, if fewer than the tile holds
SINK = gl.constexpr(10)
WINDOW = gl.constexpr(11)
DENSE_START = gl.constexpr(12)
DENSE_STOP = gl.constexpr(13)
LIST_HEAD = gl.constexpr(14)  # sequence * number of query heads + query head if the head has lists, else -1
LIST_ROW = gl.constexpr(15)
ELEMENT = gl.constexpr(16)
KV_HEAD = gl.constexpr(17)
KEY_START = gl.constexpr(18)  # tensor row of the sequence's first key
FOLLOWS_LIST = gl.constexpr(19)
FIELDS = gl.constexpr(20)


@dataclass(frozen=True)
class Shape:
    """Everything about a launch that the compiler must know."""

    head_dim: int
    key_stages: int
    value_stages: int
    has_edges: bool  # tiles besides the diagonal need masks
    is_ragged: bool  # sequences lie where spans say
    is_packed: bool
    has_lists: bool
    has_dense_rows: bool
    sorted_heads: int  # power of two that holds all KV heads of all sequences, if they are sorted by mode; else 0


@gluon.jit
def allocate(q_desc, k_desc, v_desc, o_desc, SHAPE: gl.constexpr):
    """Buffers and barriers. A barrier named x_full says that x has arrived, x_free that its readers are done."""
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    q_s = gl.allocate_shared_memory(q_desc.dtype, [4, 1, 1, HALF, D], q_desc.layout)
    k_s = gl.allocate_shared_memory(q_desc.dtype, [KS, 1, 1, ROWS, D], k_desc.layout)
    v_s = gl.allocate_shared_memory(q_desc.dtype, [VS, 1, 1, ROWS, D], v_desc.layout)
    o_s = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, HALF, D], o_desc.layout)
    records = gl.allocate_shared_memory(gl.int32, [2 * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    item_full, item_free = allocate_barriers(2, 3)  # read by the producer too
    q_full, q_free = allocate_barriers(2, 2)
    k_full, k_free = allocate_barriers(KS, 2)
    v_full, v_free = allocate_barriers(VS, 2)
    barriers = (item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free)
    return (q_s, k_s, v_s, o_s, records), barriers


@gluon.jit
def allocate_barriers(COUNT: gl.constexpr, READERS: gl.constexpr):
    """COUNT barriers that READERS arrivals complete."""
    full = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=READERS)
    return full, free


@gluon.jit
def write_field(records, slot, field, value):
    """Put a number into a field of a work record in shared memory."""
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    records.index(slot * FIELDS + field).store(gl.full([1], value, gl.int32, LANES))


@gluon.jit
def read_field(records, slot, field):
    """A field of a work record, the same in every thread."""
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(records.index(slot * FIELDS + field).load(LANES), 0)


@gluon.jit
def locate_list(head, tile, row, room):
    """Offset of a tile's key blocks in `BlockLists.indices`: rows of a triangle, back to back."""
    first = tile - row
    return head.to(gl.int64) * room + tile * (tile + 1) // 2 - first * (first + 1) // 2
