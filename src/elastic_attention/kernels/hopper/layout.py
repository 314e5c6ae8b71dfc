"""What the roles of the kernel share: its compile-time shape, its shared memory and the record of a work item."""

from dataclasses import dataclass
from typing import Any, NamedTuple

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
LIST_COUNT = gl.constexpr(14)  # names on the list of key tiles; 0 = no list
LIST_PLACE = gl.constexpr(15)  # where in `BlockLists.indices` it begins, 64 bits
ELEMENT = gl.constexpr(17)
KV_HEAD = gl.constexpr(18)
KEY_START = gl.constexpr(19)  # tensor row of the sequence's first key
FOLLOWS_LIST = gl.constexpr(20)  # reads what is listed and nothing else
EARLY = gl.constexpr(21)  # of a wide tile, as `schedule.plan_wide_keys` says
HOLE = gl.constexpr(22)
FIELDS = gl.constexpr(23)


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
    is_hidden: bool  # reads nothing but the key tiles between sink and window
    sorted_heads: int  # power of two that holds all KV heads of all sequences, if they are sorted by mode; else 0
    consumers: int = 2  # warpgroups of 64 query rows; 3 have wide tiles, and nothing that is_ or has_ says


class Descriptors(NamedTuple):
    """Tensors as the copy engine knows them."""

    q: Any
    k: Any
    v: Any
    out: Any


class Buffers(NamedTuple):
    """Shared memory: tiles of two work items' queries, rings of keys and values, results, two work records."""

    q: Any
    k: Any
    v: Any
    out: Any
    records: Any


class Barriers(NamedTuple):
    """x_full says that x has arrived, x_free that its readers are done; the queries are freed with their item."""

    item_full: Any
    item_free: Any
    q_full: Any
    k_full: Any
    k_free: Any
    v_full: Any
    v_free: Any


class Tensors(NamedTuple):
    """What is read and written through pointers."""

    out: Any
    lse: Any
    modes: Any
    counter: Any
    list_counts: Any
    list_indices: Any
    dense_rows: Any
    query_starts: Any
    query_lengths: Any
    key_starts: Any
    key_lengths: Any


class Sizes(NamedTuple):
    """Numbers of a launch; sink, window and block are tokens, scale is for exponents of 2."""

    num_queries: Any
    num_keys: Any
    num_q_heads: Any
    num_kv_heads: Any
    num_sequences: Any
    num_tiles: Any
    list_rows: Any
    list_room: Any
    scale: Any
    sink: Any
    window: Any
    block: Any


class Launch(NamedTuple):
    """All that the roles of the kernel share."""

    descs: Descriptors
    buffers: Buffers
    barriers: Barriers
    tensors: Tensors
    sizes: Sizes


@gluon.jit
def allocate(descs, SHAPE: gl.constexpr):
    """The buffers and barriers of a program."""
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    D: gl.constexpr = SHAPE.head_dim
    N: gl.constexpr = SHAPE.consumers
    q_s = gl.allocate_shared_memory(descs.q.dtype, [2 * N, 1, 1, HALF, D], descs.q.layout)
    k_s = gl.allocate_shared_memory(descs.q.dtype, [KS, 1, 1, ROWS, D], descs.k.layout)
    v_s = gl.allocate_shared_memory(descs.q.dtype, [VS, 1, 1, ROWS, D], descs.v.layout)
    o_s = gl.allocate_shared_memory(descs.q.dtype, [N, 1, 1, HALF, D], descs.out.layout)
    records = gl.allocate_shared_memory(gl.int32, [2 * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    item_full, item_free = allocate_barriers(2, 1), allocate_barriers(2, N + 1)  # read by the producer too
    q_full = allocate_barriers(2, 1)
    k_full, k_free = allocate_barriers(KS, 1), allocate_barriers(KS, N)
    v_full, v_free = allocate_barriers(VS, 1), allocate_barriers(VS, N)
    barriers = Barriers(item_full, item_free, q_full, k_full, k_free, v_full, v_free)
    return Buffers(q_s, k_s, v_s, o_s, records), barriers


@gluon.jit
def allocate_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers that ARRIVALS arrivals complete."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


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
def write_place(records, slot, place):
    """Put a 64-bit offset into the record."""
    write_field(records, slot, LIST_PLACE, place.to(gl.int32))
    write_field(records, slot, LIST_PLACE + 1, (place >> 32).to(gl.int32))


@gluon.jit
def read_place(records, slot):
    """The offset that `write_place` has left."""
    high = read_field(records, slot, LIST_PLACE + 1).to(gl.int64) << 32
    return high | (read_field(records, slot, LIST_PLACE).to(gl.int64) & 0xFFFFFFFF)
