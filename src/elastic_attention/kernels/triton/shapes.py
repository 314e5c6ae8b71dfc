"""How large tiles are on which GPU, and in which order programs start."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..spans import Spans

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
    512: (TileShape(64, 64, 8, 2), TileShape(128, 32, 8, 2)),
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
    table = (
        _FLOAT32_GRADIENT if dtype.itemsize > 2 else _HOPPER_GRADIENT if has_descriptors(device) else _OTHER_GRADIENT
    )
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    return next(shapes for least, shapes in table.items() if row_bytes >= least)


def has_descriptors(device: torch.device) -> bool:
    """Whether the GPU has a copy engine for tiles (NVIDIA from capability 9 on)."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


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
