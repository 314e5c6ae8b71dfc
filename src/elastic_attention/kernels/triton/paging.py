"""Writing keys and values into pages: one new token a sequence, or the tokens of a prompt. One launch each.

A row is a (sequence, KV head). Its slots are numbered from 0 and page_size of them make a page; the table says which
page of the pool holds which slots. FULL rows put position p in slot p. STREAMING rows pin the sink in the first slots
and use the next `local_window` slots as a ring, so a row never holds more than sink + window tokens. Keys carry their
rotary position already, so their order in memory does not matter.

Shape letters: B batch, T new tokens, G KV heads, D head dim, P pages of the pool.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...config import StreamingConfig
from .. import modes as mode_numbers
from ..device import on_its_device

STREAMING = tl.constexpr(mode_numbers.STREAMING)
_TILE = 64  # tokens that a program of `compact_rows` moves


@on_its_device
def append_token(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
) -> None:
    """Write one new token a sequence behind its last one and count it in `lengths`. Safe in a CUDA graph.

    Args:
        keys, values: (B, G, 1, D), the last dimension contiguous.
        key_pages, value_pages: (P, page_size, D), contiguous; written.
        table: (B * G, max_pages) int32, pages of each row; the page of the new token must be there.
        lengths: (B,) int32, tokens of each sequence; counted up.
        modes: (B, G) int32, FULL or STREAMING.
        config: sink and window of STREAMING rows.
    """
    batch, heads, _, width = keys.shape
    _append[(batch,)](
        keys, values, key_pages, value_pages, table, lengths, modes, table.shape[1],
        *keys.stride()[:2], *values.stride()[:2],
        G=heads, G_UP=triton.next_power_of_2(heads), D=width, D_UP=triton.next_power_of_2(width),
        PAGE=key_pages.shape[1], SINK=config.num_sink_tokens, WINDOW=config.local_window,
    )  # fmt: skip


@on_its_device
def compact_rows(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
) -> None:
    """Write the tokens that their rows keep; what falls out of the window at once is not even read.

    Args:
        keys, values: (B, G, T, D), the last dimension contiguous.
        positions: (B, T) int32, position of each token in its sequence; -1 = padding, which is left out.
        key_pages, value_pages, table, modes, config: as in `append_token`; every kept token's page must be there.
        lengths: (B,) int32, tokens of each sequence, these included.
    """
    batch, heads, num_new, width = keys.shape
    _compact[(triton.cdiv(num_new, _TILE), batch * heads)](
        keys, values, positions, key_pages, value_pages, table, lengths, modes, num_new, table.shape[1],
        *keys.stride()[:3], *values.stride()[:3], *positions.stride(),
        G=heads, D=width, D_UP=triton.next_power_of_2(width), TILE=_TILE, PAGE=key_pages.shape[1],
        SINK=config.num_sink_tokens, WINDOW=config.local_window, BLOCK=config.block_size,
    )  # fmt: skip


@triton.jit
def find_slot(position, is_ring, SINK: tl.constexpr, WINDOW: tl.constexpr):
    """Slot of a token in its row."""
    return tl.where(is_ring & (position >= SINK), SINK + (position - SINK) % WINDOW, position)


@triton.jit(do_not_specialize=["max_pages"])
def _append(
    keys, values, key_pages, value_pages, table, lengths, modes, max_pages,
    key_stride_b, key_stride_g, value_stride_b, value_stride_g,
    G: tl.constexpr, G_UP: tl.constexpr, D: tl.constexpr, D_UP: tl.constexpr,
    PAGE: tl.constexpr, SINK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip # type: ignore[no-untyped-def]
    # Keys may be a view into those of a long prompt, whose strides leave 32 bits.
    b, heads = tl.program_id(0).to(tl.int64), tl.arange(0, G_UP).to(tl.int64)
    is_head = heads < G
    row = b * G + heads
    length = tl.load(lengths + b)
    slot = find_slot(length, tl.load(modes + row, mask=is_head, other=0) == STREAMING, SINK, WINDOW)
    page = tl.load(table + row * max_pages + slot // PAGE, mask=is_head, other=0)
    columns = tl.arange(0, D_UP)
    is_there = is_head[:, None] & (columns < D)[None, :]
    target = ((page.to(tl.int64) * PAGE + slot % PAGE) * D)[:, None] + columns[None, :]
    new_key = tl.load(keys + b * key_stride_b + heads[:, None] * key_stride_g + columns[None, :], mask=is_there)
    tl.store(key_pages + target, new_key, mask=is_there)
    new_value = tl.load(values + b * value_stride_b + heads[:, None] * value_stride_g + columns[None, :], mask=is_there)
    tl.store(value_pages + target, new_value, mask=is_there)
    tl.debug_barrier()  # every thread has read the length before one of them counts it up
    tl.store(lengths + b, length + 1)


@triton.jit(do_not_specialize=["num_new", "max_pages"])
def _compact(
    keys, values, positions, key_pages, value_pages, table, lengths, modes, num_new, max_pages,
    key_stride_b, key_stride_g, key_stride_t, value_stride_b, value_stride_g, value_stride_t,
    position_stride_b, position_stride_t,
    G: tl.constexpr, D: tl.constexpr, D_UP: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr,
    SINK: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip # type: ignore[no-untyped-def]
    row = tl.program_id(1)
    b, g = (row // G).to(tl.int64), (row % G).to(tl.int64)
    length = tl.load(lengths + b)
    is_ring = tl.load(modes + row) == STREAMING
    window_start = (tl.maximum(length - 1, 0) // BLOCK + 1) * BLOCK - WINDOW
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    position = tl.load(positions + b * position_stride_b + token * position_stride_t, mask=token < num_new, other=-1)
    is_kept = (position >= 0) & ((is_ring ^ True) | (position < SINK) | (position >= window_start))
    slot = find_slot(position, is_ring, SINK, WINDOW)
    page = tl.load(table + row * max_pages + slot // PAGE, mask=is_kept, other=0)
    columns = tl.arange(0, D_UP)
    is_there = is_kept[:, None] & (columns < D)[None, :]
    target = ((page.to(tl.int64) * PAGE + slot % PAGE) * D)[:, None] + columns[None, :]
    offset = token.to(tl.int64)
    source = keys + b * key_stride_b + g * key_stride_g + offset[:, None] * key_stride_t + columns[None, :]
    tl.store(key_pages + target, tl.load(source, mask=is_there), mask=is_there)
    source = values + b * value_stride_b + g * value_stride_g + offset[:, None] * value_stride_t
    tl.store(value_pages + target, tl.load(source + columns[None, :], mask=is_there), mask=is_there)
