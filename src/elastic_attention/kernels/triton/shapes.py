"""How large tiles are on which GPU, and in which order programs start."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import triton
from torch import Tensor

from ..spans import Spans

T = TypeVar("T")

# Keys and values of the KV heads that run at the same time; level-2 caches hold 40 to 60 MB.
_CACHE_BYTES = 32 << 20
_MOST_SECTIONS = 65_535  # of a launch, in its third dimension


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows of a query tile, rows of a key tile, warps of a program, tiles in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By the bytes of a (padded) row: what fits the shared memory and the registers of the chip without a spill. The plain
# kernel runs as two programs of 4 warps, one multiplies while the other takes exponentials; the others need registers.
_HOPPER_PLAIN = {512: TileShape(128, 64, 8, 2), 256: TileShape(64, 64, 4, 3), 0: TileShape(64, 128, 4, 2)}
_HOPPER = {512: TileShape(128, 64, 8, 2), 256: TileShape(128, 128, 8, 3), 0: TileShape(64, 128, 4, 2)}
_HOPPER_BLENDED = {512: TileShape(64, 64, 8, 2), 256: TileShape(128, 128, 8, 3), 0: TileShape(64, 128, 4, 2)}
_OTHER = {512: TileShape(64, 32, 4, 2), 0: TileShape(128, 64, 8, 2)}
_FLOAT32 = {512: TileShape(32, 16, 4, 1), 0: TileShape(64, 32, 4, 1)}
_HOPPER_GRADIENT_PLAIN = {
    512: (TileShape(32, 64, 8, 2), TileShape(128, 32, 8, 2)),
    256: (TileShape(64, 64, 4, 2), TileShape(128, 64, 8, 3)),
    0: (TileShape(64, 64, 4, 2), TileShape(64, 64, 4, 2)),
}
_HOPPER_GRADIENT = {
    512: (TileShape(32, 64, 8, 2), TileShape(128, 32, 8, 2)),
    256: (TileShape(32, 128, 8, 2), TileShape(128, 64, 8, 2)),
    0: (TileShape(64, 64, 4, 2), TileShape(64, 64, 4, 2)),
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


def choose_shape(q: Tensor, *, is_plain: bool = False, is_blended: bool = False) -> TileShape:
    """The forward tile for this GPU, dtype and head dim.

    Args:
        q: (..., D), the queries.
        is_plain: full and streaming heads of whole sequences, nothing else; tiles hold whole blocks.
        is_blended: both paths at once.
    """
    hopper = _HOPPER_BLENDED if is_blended else _HOPPER_PLAIN if is_plain else _HOPPER
    return _look_up(q, hopper, _OTHER, _FLOAT32)


def fit_blocks(shape: TileShape, block_size: int) -> TileShape:
    """The shape cut down to tiles of no more than a block, whose size is a power of two."""
    queries, keys = min(shape.queries, block_size), min(shape.keys, block_size)
    return TileShape(queries, keys, shape.warps if queries > 64 else 4, shape.stages)


def choose_gradient_shapes(q: Tensor, *, is_plain: bool = False) -> tuple[TileShape, TileShape]:
    """The backward tiles: of the sweep over queries for dK and dV, of the sweep over keys for dQ."""
    hopper = _HOPPER_GRADIENT_PLAIN if is_plain else _HOPPER_GRADIENT
    return _look_up(q, hopper, _OTHER_GRADIENT, _FLOAT32_GRADIENT)


def _look_up(q: Tensor, hopper: dict[int, T], other: dict[int, T], float32: dict[int, T]) -> T:
    # Blackwell's small chips (capability 12) have the copy engine, but less than half the shared memory.
    is_large = has_descriptors(q.device) and _find_capability(q.device) in (9, 10)
    table = float32 if q.element_size() > 2 else hopper if is_large else other
    row_bytes = triton.next_power_of_2(q.shape[-1]) * q.element_size()
    return next(entry for least, entry in table.items() if row_bytes >= least)


def takes_descriptors(q: Tensor) -> bool:
    """Whether tiles of these queries go through the copy engine; float32 runs on the ordinary units, without it."""
    return has_descriptors(q.device) and q.element_size() <= 2


def holds_whole_blocks(block_size: int, spans: Spans | None) -> bool:
    """Whether every tile holds whole blocks of whole sequences, so that it needs no mask but the causal one."""
    return spans is None and block_size % 128 == 0


def has_descriptors(device: torch.device) -> bool:
    """Whether the GPU has a copy engine for tiles (NVIDIA from capability 9 on)."""
    return device.type == "cuda" and torch.version.hip is None and _find_capability(device) >= 9


def _find_capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def shape_grid(num_rows: int, group_size: int, num_tiles: int, row_bytes: int) -> tuple[int, int, int]:
    """Programs in the order they start: sections of KV heads that fit the cache; in a section the longest tiles of
    all its heads first; among those the query heads of a KV head next to each other.

    Args:
        num_rows: KV heads of all sequences.
        group_size: programs of a KV head for one tile.
        num_tiles: tiles of a head.
        row_bytes: keys and values of one KV head.
    """
    most = min(max(1, _CACHE_BYTES // max(1, row_bytes)), num_rows)
    section = next(n for n in range(most, 0, -1) if num_rows % n == 0)
    if num_rows // section > _MOST_SECTIONS:  # thousands of sequences: more of them at a time than the cache holds
        section = next(n for n in range(-(-num_rows // _MOST_SECTIONS), num_rows + 1) if num_rows % n == 0)
    return section * group_size, num_tiles, num_rows // section
