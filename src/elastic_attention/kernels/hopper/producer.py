"""The producer warp: keeps the copy engine busy with the keys and values of the planned items."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import schedule
from .layout import (
    ELEMENT,
    FOLLOWS_LIST,
    GAP,
    KEY_START,
    KV_HEAD,
    OPENING,
    ROWS,
    STEPS,
    TILE,
    read_field,
    read_place,
)

key_tile = gluon.jit(schedule.key_tile)


@gluon.jit
def produce(launched, SHAPE: gl.constexpr):
    """A stream of key and value tiles through two rings."""
    descs = launched.descs
    buffers = launched.buffers
    barriers = launched.barriers
    records = buffers.records
    KS: gl.constexpr = SHAPE.key_stages
    VS: gl.constexpr = SHAPE.value_stages
    BYTES: gl.constexpr = ROWS * SHAPE.head_dim * 2
    item = 0
    loaded = 0
    mbarrier.wait(barriers.item_full.index(0), 0)
    steps = read_field(records, 0, STEPS)
    while steps > 0:
        slot = item & 1
        tile = read_field(records, slot, TILE)
        opening = read_field(records, slot, OPENING)
        gap = read_field(records, slot, GAP)
        element = read_field(records, slot, ELEMENT)
        kv_head = read_field(records, slot, KV_HEAD)
        key_start = 0
        if SHAPE.is_ragged:
            key_start = read_field(records, slot, KEY_START)
        entries = launched.tensors.list_indices
        follows_list = 0
        if SHAPE.has_lists:
            follows_list = read_field(records, slot, FOLLOWS_LIST)
            entries += read_place(records, slot)
        mbarrier.arrive(barriers.item_free.index(slot), count=1)
        for step in range(steps):
            source = key_tile(step, tile, opening, gap)
            if SHAPE.has_lists:
                if follows_list != 0:
                    source = gl.load(entries + (steps - 1 - step)).to(gl.int32)
            key_row = key_start + source * ROWS
            ks = loaded % KS
            mbarrier.wait(barriers.k_free.index(ks), ((loaded // KS) & 1) ^ 1)
            mbarrier.expect(barriers.k_full.index(ks), BYTES)
            tma.async_copy_global_to_shared(
                descs.k, [element, kv_head, key_row, 0], barriers.k_full.index(ks), buffers.k.index(ks)
            )
            vs = loaded % VS
            mbarrier.wait(barriers.v_free.index(vs), ((loaded // VS) & 1) ^ 1)
            mbarrier.expect(barriers.v_full.index(vs), BYTES)
            tma.async_copy_global_to_shared(
                descs.v, [element, kv_head, key_row, 0], barriers.v_full.index(vs), buffers.v.index(vs)
            )
            loaded += 1
        item += 1
        mbarrier.wait(barriers.item_full.index(item & 1), (item >> 1) & 1)
        steps = read_field(records, item & 1, STEPS)
