"""Tiles: how large they are on which GPU, how they are loaded, and one step of softmax over one of them.

Key tiles and query tiles are counted in positions of their sequence, so that whole blocks of the streaming pattern
lie in one tile and only tiles on an edge need a mask.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..spans import Spans

LOG2_E = 1.4426950408889634
# Below every real score, yet finite: a row that has seen no key yet must not compute inf - inf.
LOWEST = tl.constexpr(-1.0e30)
LOG_2_E = tl.constexpr(LOG2_E)
LN_2 = tl.constexpr(0.6931471805599453)
# Keys and values of the KV heads that run at the same time; level-2 caches hold 40 to 60 MB.
_CACHE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows of a query tile, rows of a key tile, warps of a program, tiles in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By the bytes of a (padded) row: what fits the shared memory and the registers of the chip without a spill.
_HOPPER = {512: TileShape(128, 64, 8, 2), 0: TileShape(128, 64, 4, 2)}
_OTHER = {512: TileShape(64, 32, 4, 2), 0: TileShape(128, 64, 8, 2)}
_FLOAT32 = {1024: TileShape(32, 16, 4, 1), 512: TileShape(32, 32, 4, 1), 0: TileShape(64, 32, 4, 1)}
_HOPPER_GRADIENT = {
    512: (TileShape(64, 64, 8, 1), TileShape(64, 64, 8, 1)),
    0: (TileShape(64, 128, 8, 2), TileShape(128, 64, 8, 2)),
}
_OTHER_GRADIENT = {
    512: (TileShape(32, 64, 8, 1), TileShape(64, 32, 8, 1)),
    0: (TileShape(32, 128, 8, 1), TileShape(128, 32, 8, 1)),
}
_FLOAT32_GRADIENT = {
    1024: (TileShape(16, 16, 4, 1), TileShape(16, 16, 4, 1)),
    512: (TileShape(16, 32, 4, 1), TileShape(32, 16, 4, 1)),
    0: (TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),
}


def choose_shape(device: torch.device, dtype: torch.dtype, head_dim: int) -> TileShape:
    """The forward tile for this GPU; float32 runs on the ordinary units and takes small tiles everywhere."""
    table = _FLOAT32 if dtype.itemsize > 2 else _HOPPER if has_descriptors(device) else _OTHER
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    return next(shape for least, shape in table.items() if row_bytes >= least)


def choose_gradient_shapes(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[TileShape, TileShape]:
    """The backward tiles: of the sweep over queries for dK and dV, of the sweep over keys for dQ."""
    table = _FLOAT32_GRADIENT if dtype.itemsize > 2 else _HOPPER_GRADIENT if has_descriptors(device) else _OTHER_GRADIENT
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    return next(shapes for least, shapes in table.items() if row_bytes >= least)


def has_descriptors(device: torch.device) -> bool:
    """Whether the GPU has a copy engine for tiles (NVIDIA from capability 9 on)."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def can_describe(*tensors: Tensor) -> bool:
    """Whether the copy engine can read these (B, H, T, D) tensors: 16-byte aligned rows of distinct memory."""
    return all(
        x.data_ptr() % 16 == 0
        and x.numel() > 0
        and all(
            s > 0 and s * x.element_size() % 16 == 0 for s, n in zip(x.stride(), x.shape[:-1], strict=False) if n > 1
        )
        for x in tensors
    )


def describe(x: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor of x (B, H, T, D), any strides, in tiles of `rows` rows and all columns."""
    sizes = list(x.shape)
    # The stride of a dimension of one element is never used, and may be anything.
    unused = triton.next_power_of_2(sizes[-1]) * 8
    strides = [s if n > 1 else unused for s, n in zip(x.stride()[:-1], sizes, strict=False)]
    return TensorDescriptor(x, sizes, [*strides, 1], [1, 1, rows, triton.next_power_of_2(sizes[-1])])


def count_tiles(num_queries: int, num_keys: int, spans: Spans | None, rows: int) -> int:
    """Query tiles of one sequence and head, from what the host knows. Tiles start at multiples of `rows` positions."""
    if spans is None:
        return triton.cdiv(num_keys, rows) - (num_keys - num_queries) // rows
    return triton.cdiv(spans.max_query_length if spans.is_packed else num_queries, rows) + 1


def name_spans(spans: Spans | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors of `spans` as kernels take them; `unused` stands in where there are none."""
    if spans is None:
        return unused, unused, unused, unused
    return spans.query_start, spans.query_length, spans.key_start, spans.key_length


def shape_grid(num_rows: int, group_size: int, num_tiles: int, row_bytes: int) -> tuple[int, int, int]:
    """Programs in the order they start: sections of KV heads that fit the cache; in a section the longest tiles of
    all its heads first; among those the query heads of a KV head next to each other.

    Args:
        num_rows: KV heads of all sequences.
        group_size: programs of a KV head for one tile.
        num_tiles: tiles of a head.
        row_bytes: keys and values of one KV head.
    """
    most = max(1, _CACHE_BYTES // max(1, row_bytes))
    section = max(n for n in range(1, num_rows + 1) if n <= most and num_rows % n == 0)
    return section * group_size, num_tiles, num_rows // section


@triton.jit
def load_rows(
    desc, base, batch, head, start, row, stride, limit, ROWS: tl.constexpr, D: tl.constexpr, DESCRIPTORS: tl.constexpr
):  # type: ignore[no-untyped-def]
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
def load_real_rows(base, row, stride, limit, ROWS: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
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
    desc, base, batch, head, row, stride, is_kept, x, ROWS: tl.constexpr, D: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Write tile x to rows [row, row + ROWS): all that lie in the tensor (DESCRIPTORS), or those that are kept.

    Args:
        desc: descriptor of the whole tensor, written at (batch, head, row).
        base: pointer to row 0 of the element and head; its type is the type written.
    """
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    x = x.to(base.dtype.element_ty)
    if DESCRIPTORS:
        desc.store([batch, head, row, 0], x.reshape(1, 1, ROWS, WIDTH))
    else:
        columns = tl.arange(0, WIDTH)
        mask = is_kept[:, None]
        if WIDTH != D:
            mask &= (columns < D)[None, :]
        pointers = base + row.to(tl.int64) * stride + tl.arange(0, ROWS)[:, None] * stride + columns[None, :]
        tl.store(pointers, x, mask=mask)


@triton.jit
def add_keys(acc, total, highest, scores, values, scale):  # type: ignore[no-untyped-def]
    """One step of running softmax in base 2: fold a tile of raw scores (M, N) and its values (N, D) into the state."""
    new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - new_highest[:, None])
    shrink = tl.math.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, total, new_highest


@triton.jit
def find_window(first, ROWS: tl.constexpr, KEYS: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
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
def load_span(query_start, query_length, key_start, key_length, sequence, T, S, RAGGED: tl.constexpr):  # type: ignore[no-untyped-def]
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
):  # fmt: skip # type: ignore[no-untyped-def]
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


@triton.jit
def hide(
    scores, queries, first, reads_all, is_listed,
    SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """-inf wherever a query does not read a key of the tile that starts at `first`.

    MASK names the rule: "causal", "seen" (the block rule, or what is listed, or all) or "hidden" (its complement).
    """
    keys = (first + tl.arange(0, scores.shape[1]))[None, :]
    rows = queries[:, None]
    reads = keys <= rows
    if MASK != "causal":
        is_seen = (keys < SINK) | (keys // BLOCK > rows // BLOCK - LOCAL // BLOCK)
        reads &= is_seen ^ True if MASK == "hidden" else is_seen | reads_all[:, None] | is_listed
    return tl.where(reads, scores, float("-inf"))


@triton.jit
def sweep(
    acc, total, highest, q_tile, k_desc, v_desc, k_base, v_base, k_stride, v_stride, batch, head, start, limit,
    queries, reads_all, scale, count, last, before, jump, free_before, free_from, free_to, list_base, list_count,
    is_named, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold `count` key tiles, `last` at the end, into the running softmax of a tile of queries.

    The i-th is tile i while i < before, then tile i + jump; or, if `is_named`, the next one of the list. Tiles below
    `free_before` or in [free_from, free_to) are read without a mask, the others under `hide`'s rule MASK. With rule
    "causal" only those from `free_to` on are masked, with "none" no tile.
    """
    PARTS: tl.constexpr = LIST_BLOCK // KEYS if LIST_BLOCK else 1
    # Behind the last key lies memory of others, and 0 * nan = nan: values of that tile have to be cleared.
    has_tail = False
    if DESCRIPTORS and RAGGED:
        has_tail = (count > 0) & ((last + 1) * KEYS > limit)
    entry = -1
    if LIST_BLOCK:
        entry = tl.load(list_base, mask=list_count > 0, other=-1).to(tl.int32)
    cursor = 0
    for i in tl.range(0, tl.where(has_tail, count - 1, count)):
        tile = i + tl.where(i < before, 0, jump)
        is_listed = False
        if LIST_BLOCK:  # entries are read one tile ahead
            tile = tl.where(is_named, entry * PARTS + i % PARTS, tile)
            if MASK == "seen":
                is_listed = entry == tile // PARTS
                cursor += (is_listed & (tile % PARTS == PARTS - 1)).to(tl.int32)
            else:
                cursor = (i + 1) // PARTS
            entry = tl.load(list_base + cursor, mask=cursor < list_count, other=-1).to(tl.int32)
        k_tile = load_rows(k_desc, k_base, batch, head, start, tile * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
        if MASK == "causal":
            is_free = tile < free_to
        else:
            is_free = (tile < free_before) | ((tile >= free_from) & (tile < free_to))
        if MASK != "none" and is_free ^ True:
            scores = hide(scores, queries, tile * KEYS, reads_all, is_listed, SINK, LOCAL, BLOCK, MASK)
        v_tile = load_rows(v_desc, v_base, batch, head, start, tile * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
        acc, total, highest = add_keys(acc, total, highest, scores, v_tile, scale)
    if has_tail:
        k_tile = load_rows(k_desc, k_base, batch, head, start, last * KEYS, k_stride, limit, KEYS, D, DESCRIPTORS)
        scores = tl.dot(q_tile, k_tile.T, input_precision="ieee")
        if MASK != "none":
            scores = hide(scores, queries, last * KEYS, reads_all, list_count > 0, SINK, LOCAL, BLOCK, MASK)
        v_tile = load_rows(v_desc, v_base, batch, head, start, last * KEYS, v_stride, limit, KEYS, D, DESCRIPTORS)
        is_real = (last * KEYS + tl.arange(0, KEYS) < limit)[:, None]
        acc, total, highest = add_keys(acc, total, highest, scores, tl.where(is_real, v_tile, 0.0), scale)
    return acc, total, highest
