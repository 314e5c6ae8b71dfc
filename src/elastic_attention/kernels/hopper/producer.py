"""The producer warp: keeps the copy engine busy with the queries, keys and values of the planned items."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import schedule
from .layout import (
    ELEMENT,
    FOLLOWS_LIST,
    GAP,
    HALF,
    HEAD,
    KEY_START,
    KV_HEAD,
    LIST_HEAD,
    LIST_ROW,
    OPENING,
    ROW,
    ROWS,
    STEPS,
    TILE,
    locate_list,
    read_field,
)

key_tile = gluon.jit(schedule.key_tile)


@gluon.jit
def produce(descs, memory, barriers, tensors, spans, sizes, pattern, SHAPE: gl.constexpr):
    """Per item the queries, then a stream of key and value tiles through two rings."""
    q_desc, k_desc, v_desc, o_desc = descs
    q_s, k_s, v_s, o_s, records = memory
    item_full, item_free, q_full, q_free, k_full, k_free, v_full, v_free = barriers
    out, lse, modes, counter, list_counts, list_indices, dense_rows = tensors
    num_queries, num_keys, num_q_heads, num_kv_heads, num_sequences, num_tiles, list_rows, list_room, scale = sizes
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    BYTES: gl.constexpr = ROWS * SHAPE.head_dim * 2
    item = 0
    loaded = 0
    mbarrier.wait(item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    while steps > 0:
        slot = item & 1
        tile = read_field(records, slot, TILE)
        opening = read_field(records, slot, OPENING)
        gap = read_field(records, slot, GAP)
        row = read_field(records, slot, ROW)
        element = read_field(records, slot, ELEMENT)
        kv_head = read_field(records, slot, KV_HEAD)
        head = read_field(records, slot, HEAD) - element * num_q_heads
        key_start = 0
        if SHAPE.is_ragged:
            key_start = read_field(records, slot, KEY_START)
        entries = list_indices
        follows_list = 0
        if SHAPE.has_lists:
            follows_list = read_field(records, slot, FOLLOWS_LIST)
            list_row = read_field(records, slot, LIST_ROW)
            entries += locate_list(read_field(records, slot, LIST_HEAD), tile, list_row, list_room)
        mbarrier.arrive(item_free.index(slot), count=1)
        mbarrier.wait(q_free.index(slot), ((item >> 1) & 1) ^ 1)
        mbarrier.expect(q_full.index(slot), BYTES)
        for i in gl.static_range(2):
            tma.async_copy_global_to_shared(
                q_desc, [element, head, row + i * HALF, 0], q_full.index(slot), q_s.index(2 * slot + i)
            )
        for step in range(steps):
            source = key_tile(step, tile, opening, gap)
            if SHAPE.has_lists:
                if follows_list != 0:
                    source = gl.load(entries + (steps - 1 - step)).to(gl.int32)
            key_row = key_start + source * ROWS
            ks = loaded % KS
            mbarrier.wait(k_free.index(ks), ((loaded // KS) & 1) ^ 1)
            mbarrier.expect(k_full.index(ks), BYTES)
            tma.async_copy_global_to_shared(k_desc, [element, kv_head, key_row, 0], k_full.index(ks), k_s.index(ks))
            vs = loaded % VS
            mbarrier.wait(v_free.index(vs), ((loaded // VS) & 1) ^ 1)
            mbarrier.expect(v_full.index(vs), BYTES)
            tma.async_copy_global_to_shared(v_desc, [element, kv_head, key_row, 0], v_full.index(vs), v_s.index(vs))
            loaded += 1
        item += 1
        mbarrier.wait(item_full.index(item & 1), (item >> 1) & 1)
        steps = read_field(records, item & 1, STEPS)
