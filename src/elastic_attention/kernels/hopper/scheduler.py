"""The scheduler warp: takes work items in turn, plans what each of them reads and loads its queries, an item ahead."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .. import modes as mode_numbers
from . import schedule
from .layout import (
    DENSE_START,
    DENSE_STOP,
    EARLY,
    ELEMENT,
    EVERYTHING,
    FIRST_ROW,
    FOLLOWS_LIST,
    GAP,
    HALF,
    HEAD,
    HOLE,
    KEY_START,
    KV_HEAD,
    LAST_KEYS,
    LIST_COUNT,
    MASKED_FROM,
    OPENING,
    ROW,
    ROWS,
    SINK,
    STEPS,
    STOP_ROW,
    TILE,
    WINDOW,
    write_field,
    write_place,
)

FULL = gl.constexpr(mode_numbers.FULL)
STREAMING = gl.constexpr(mode_numbers.STREAMING)
LISTS = gl.constexpr(mode_numbers.LISTS)

split_item = gluon.jit(schedule.split_item)
place_tile = gluon.jit(schedule.place_tile)
plan_keys = gluon.jit(schedule.plan_keys)
plan_wide_keys = gluon.jit(schedule.plan_wide_keys)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _find_head(place, modes, count, SLOTS: gl.constexpr):
    """The KV head at a place of the order: STREAMING heads, whose tiles are short and alike, come last and fill up."""
    LANES: gl.constexpr = gl.BlockedLayout([SLOTS // 32], [32], [1], [0])
    heads = gl.arange(0, SLOTS, layout=LANES)
    mode = gl.load(modes + heads, mask=heads < count, other=STREAMING)
    is_long = (mode.to(gl.int32) != STREAMING).to(gl.int32)
    longs = gl.associative_scan(is_long, 0, _add)
    num_longs = gl.sum(is_long, 0)
    places = gl.where(is_long == 1, longs - 1, num_longs + heads - longs)
    return gl.sum(gl.where(places == place, heads, 0), 0)


@gluon.jit
def plan(launched, SHAPE: gl.constexpr):
    """Leaves a record per item, and one of no steps at the end."""
    records = launched.buffers.records
    barriers = launched.barriers
    tensors = launched.tensors
    sizes = launched.sizes
    num_q_heads = sizes.num_q_heads
    num_kv_heads = sizes.num_kv_heads
    group = num_q_heads // num_kv_heads
    total = sizes.num_sequences * num_q_heads * sizes.num_tiles
    CONSUMERS: gl.constexpr = SHAPE.consumers
    QUERY_ROWS: gl.constexpr = CONSUMERS * HALF
    planned = 0
    query_start = 0
    query_length = sizes.num_queries
    key_start = 0
    key_length = sizes.num_keys
    item = gl.program_id(0)
    while item < total:
        place, behind, member = split_item(item, sizes.num_tiles, group)
        section = place
        if SHAPE.sorted_heads:
            section = _find_head(place, tensors.modes, sizes.num_sequences * num_kv_heads, SHAPE.sorted_heads)
        sequence = section // num_kv_heads
        kv_head = section - sequence * num_kv_heads
        head = kv_head * group + member
        element = sequence
        first_row = 0
        stop_row = sizes.num_queries
        if SHAPE.is_ragged:
            query_start = gl.load(tensors.query_starts + sequence)
            query_length = gl.load(tensors.query_lengths + sequence)
            key_start = gl.load(tensors.key_starts + sequence)
            key_length = gl.load(tensors.key_lengths + sequence)
            if SHAPE.is_packed:
                element = 0
                first_row = query_start
                stop_row = query_start + query_length
        shift = query_start + query_length - key_length
        tile, row = place_tile(behind, shift, stop_row, QUERY_ROWS)
        if SHAPE.consumers == 3:  # by the shift it would take a register more, which there is not
            row = stop_row - (key_length - tile * QUERY_ROWS)
        if (row + QUERY_ROWS > first_row) & (first_row < stop_row):
            mode = gl.load(tensors.modes + section).to(gl.int32)
            first = tile * ROWS
            has_queries = (row < query_start + query_length) & (row + ROWS > query_start)
            reads_all = mode == FULL
            is_named = mode == LISTS
            is_mixed = False
            dense_start = 0
            dense_stop = 0
            if SHAPE.has_dense_rows:
                dense_start = gl.load(tensors.dense_rows + sequence * 2, mask=mode > STREAMING, other=0)
                dense_stop = gl.load(tensors.dense_rows + sequence * 2 + 1, mask=mode > STREAMING, other=0)
                is_dense = (dense_start <= first) & (dense_stop >= gl.minimum(first + ROWS, key_length))
                is_mixed = (dense_start < first + ROWS) & (dense_stop > first) & (is_dense == 0)
                reads_all = reads_all | is_dense
                is_named = is_named & (is_dense == 0)
            sink = gl.where(is_named, 0, sizes.sink)
            window = gl.where(reads_all, EVERYTHING, gl.where(is_named, -EVERYTHING, sizes.window))
            steps, masked_from, opening, gap = plan_keys(
                gl.maximum(tile, 0), sizes.sink, gl.where(is_mixed | is_named, EVERYTHING, window), sizes.block, ROWS
            )
            masked_from = gl.where(is_mixed, 1, masked_from)
            follows_list = False
            if SHAPE.has_lists:
                is_named = is_named & has_queries
                line = sequence * num_q_heads + head
                opens = (key_length - query_length) // ROWS  # the first query block that has a list
                list_count = gl.load(
                    tensors.list_counts + line * sizes.list_rows + tile - opens, mask=is_named, other=0
                )
                list_place = line.to(gl.int64) * sizes.list_room + tile * (tile + 1) // 2 - opens * (opens + 1) // 2
                follows_list = is_named & (is_mixed == 0)
                steps = gl.where(follows_list, list_count, steps)
                masked_from = gl.where(follows_list, list_count, masked_from)
            last = tile  # the first key tile to read
            early = 0
            hole = 0
            if SHAPE.consumers == 3:
                last, steps, early, hole, opening, gap = plan_wide_keys(tile, sizes.sink, window, ROWS, QUERY_ROWS)
            elif SHAPE.is_hidden:
                last = opening - 1
                steps = gl.where(has_queries, gap, 0)
                gap = 0
            elif SHAPE.is_ragged:
                steps = gl.where(has_queries, steps, 1)

            is_due = True  # nobody waits for an item that reads nothing
            if SHAPE.is_hidden:
                is_due = steps > 0
            if is_due:
                slot = planned & 1
                # An item ahead, because memory is far; who has freed the record is done with the queries beside it.
                mbarrier.expect(barriers.q_full.index(slot), QUERY_ROWS * SHAPE.head_dim * 2)
                for i in gl.static_range(CONSUMERS):
                    tma.async_copy_global_to_shared(
                        launched.descs.q,
                        [element, head, row + i * HALF, 0],
                        barriers.q_full.index(slot),
                        launched.buffers.q.index(CONSUMERS * slot + i),
                    )
                write_field(records, slot, STEPS, steps)
                write_field(records, slot, TILE, last)
                write_field(records, slot, OPENING, opening)
                write_field(records, slot, GAP, gap)
                write_field(records, slot, ROW, row)
                write_field(records, slot, HEAD, element * num_q_heads + head)
                write_field(records, slot, ELEMENT, element)
                write_field(records, slot, KV_HEAD, kv_head)
                if SHAPE.consumers == 3:
                    write_field(records, slot, EARLY, early)
                    write_field(records, slot, HOLE, hole)
                if SHAPE.is_ragged:
                    write_field(records, slot, FIRST_ROW, query_start)
                    write_field(records, slot, STOP_ROW, query_start + query_length)
                    write_field(records, slot, LAST_KEYS, key_length - first)
                    write_field(records, slot, KEY_START, key_start)
                if SHAPE.has_lists:
                    write_field(records, slot, LIST_COUNT, list_count)
                    write_place(records, slot, list_place)
                    write_field(records, slot, FOLLOWS_LIST, gl.where(follows_list, 1, 0))
                if SHAPE.has_edges:
                    write_field(records, slot, MASKED_FROM, masked_from)
                    write_field(records, slot, SINK, sink)
                    write_field(records, slot, WINDOW, window)
                    write_field(records, slot, DENSE_START, dense_start)
                    write_field(records, slot, DENSE_STOP, dense_stop)
                mbarrier.arrive(barriers.item_full.index(slot), count=1)
                planned += 1
                # Before the next ticket: who takes one early, takes it from somebody who is free sooner.
                mbarrier.wait(barriers.item_free.index(planned & 1), ((planned >> 1) & 1) ^ 1)
        # The ticket after the last one winds the counter back for the next launch.
        ticket = gl.atomic_add(tensors.counter, 1, sem="relaxed")
        if ticket + 1 == total:
            gl.store(tensors.counter, 0)
        item = ticket + gl.num_programs(0)
    write_field(records, planned & 1, STEPS, 0)
    mbarrier.arrive(barriers.item_full.index(planned & 1), count=1)
