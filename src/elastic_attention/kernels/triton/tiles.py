"""Tiles: which one a program takes, how it is loaded and stored.

Tiles start at multiples of their length, counted in positions of their sequence, so that whole blocks of the streaming
pattern lie in one tile and only tiles on an edge need a mask.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..arguments import LOG2_E, find_strides, is_describable

LOG_2_E = tl.constexpr(LOG2_E)
LN_2 = tl.constexpr(0.6931471805599453)


def can_describe(*tensors: Tensor) -> bool:
    """Whether the copy engine can read these (B, H, T, D) tensors: 16-byte aligned rows of distinct memory."""
    return all(map(is_describable, tensors))


def describe(x: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor of x (B, H, T, D), any strides, in tiles of `rows` rows and all columns."""
    sizes = list(x.shape)
    return TensorDescriptor(x, sizes, find_strides(x), [1, 1, rows, triton.next_power_of_2(sizes[-1])])


@triton.jit
def load_rows(
    desc, base, batch, head, start, row, stride, limit, ROWS: tl.constexpr, D: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Rows [row, row + ROWS) of one sequence, padded to a power of two; rows outside [0, limit) need not be real.

    Args:
        desc: descriptor of the whole tensor, read at (batch, head, start + row).
        base: pointer to row 0 of the sequence and head.
    """
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    if DESCRIPTORS:
        return desc.load([batch, head, start + row, 0]).reshape(ROWS, WIDTH)
    return load_real_rows(base, row, stride, limit, ROWS, D)


@triton.jit
def load_real_rows(base, row, stride, limit, ROWS: tl.constexpr, D: tl.constexpr):
    """As `load_rows`, through pointers, with zeros for the rows outside [0, limit)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_real = ((row + rows >= 0) & (row + rows < limit))[:, None]
    if WIDTH != D:
        is_real &= (columns < D)[None, :]
    pointers = base + row.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    return tl.load(pointers, mask=is_real, other=0.0)


@triton.jit
def store_rows(
    desc, base, batch, head, row, num_rows, stride, is_kept, x,
    ROWS: tl.constexpr, D: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Write the kept rows of tile x to rows [row, row + ROWS).

    Args:
        desc: descriptor of the whole tensor, written at (batch, head, row); only with DESCRIPTORS, which promises that
            all rows of the tensor are kept.
        base: pointer to row 0 of the element and head; its type is the type written.
        num_rows: rows of the tensor.
    """
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    x = x.to(base.dtype.element_ty)
    # The copy engine cuts off what lies behind the last row, but faults on a tile that does not begin in the tensor.
    is_inside = (row >= 0) & (row < num_rows)
    if DESCRIPTORS and is_inside:
        desc.store([batch, head, row, 0], x.reshape(1, 1, ROWS, WIDTH))
    else:
        columns = tl.arange(0, WIDTH)
        mask = is_kept[:, None]
        if WIDTH != D:
            mask &= (columns < D)[None, :]
        pointers = base + row.to(tl.int64) * stride + tl.arange(0, ROWS)[:, None] * stride + columns[None, :]
        tl.store(pointers, x, mask=mask)


@triton.jit
def find_window(first, ROWS: tl.constexpr, KEYS: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr):
    """Key tiles where the local window of queries [first, first + ROWS) opens: for some row, for every row."""
    opens = tl.maximum(first // BLOCK * BLOCK + BLOCK - LOCAL, 0)
    opened = tl.maximum((first + ROWS - 1) // BLOCK * BLOCK + BLOCK - LOCAL, 0)
    return opens // KEYS, tl.cdiv(opened, KEYS)


@triton.jit
def place_program(num_kv_heads, GROUP: tl.constexpr):
    """Which tile a program of a grid (`shape_grid`) takes.

    Returns:
        sequence, KV head, query head, number of tiles behind this one.
    """
    lane = tl.program_id(0)
    row = tl.program_id(2) * (tl.num_programs(0) // GROUP) + lane // GROUP
    kv_head = row % num_kv_heads
    return row // num_kv_heads, kv_head, kv_head * GROUP + lane % GROUP, tl.program_id(1)


@triton.jit
def load_span(query_start, query_length, key_start, key_length, sequence, T, S, RAGGED: tl.constexpr):
    """First query row, queries, first key row and keys of a sequence."""
    if RAGGED:
        return (
            tl.load(query_start + sequence), tl.load(query_length + sequence),
            tl.load(key_start + sequence), tl.load(key_length + sequence),
        )  # fmt: skip
    return T * 0, T, S * 0, S  # T and S are no constants: a plain 0 would be one


@triton.jit
def locate_tile(
    query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Where this program's query tile lies.

    Returns:
        sequence, element of the batch, KV head, query head, tiles behind this one; position of the tile's first query;
        position of the tensor's first row; positions [first, stop) that hold queries of the sequence; positions
        [first, stop) that this sequence's tiles have to write; first key row.
    """
    sequence, kv_head, head, behind = place_program(num_kv_heads, GROUP)
    query_start, query_length, key_start, num_keys = load_span(
        query_starts, query_lengths, key_starts, key_lengths, sequence, T, S, RAGGED
    )
    batch = sequence * 0 if PACKED else sequence
    first_real = num_keys - query_length
    shift = first_real - query_start
    # Rows of a padded element that hold no query are nobody else's: they are written here as well.
    first_kept = first_real if PACKED else shift
    stop_kept = num_keys if PACKED else shift + T
    first = ((stop_kept - 1) // ROWS - behind) * ROWS
    return (
        sequence, batch, kv_head, head, behind, first, shift, first_real, num_keys, first_kept, stop_kept, key_start
    )  # fmt: skip
