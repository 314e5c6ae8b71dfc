"""What every launch of an attention kernel prepares on the host: outputs, stand-ins for what is left out, sizes.

Shape letters: B batch, T queries, S keys, H query heads, D head dim.
"""

import torch
from torch import Tensor

from .block_lists import BlockLists
from .spans import Spans

LOG2_E = 1.4426950408889634


def scale_for_base_two(scale: float) -> float:
    """The factor of scores whose softmax is taken in powers of 2.

    Raises:
        ValueError: `scale` is not positive; the kernels take maxima before they scale.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive; negate the queries instead.")
    return scale * LOG2_E


def make_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Empty results for q (B, H, T, D): out like it with memory order (B, T, H, D), lse (B, H, T) float32."""
    batch, heads, num_queries, width = q.shape
    out = q.new_empty(batch, num_queries, heads, width).transpose(1, 2)
    return out, q.new_empty(batch, heads, num_queries, dtype=torch.float32)


def count_tiles(num_queries: int, num_keys: int, spans: Spans | None, rows: int) -> int:
    """Query tiles of one sequence and head, from what the host knows. Tiles start at multiples of `rows` positions."""
    if spans is None:
        return -(-num_keys // rows) - (num_keys - num_queries) // rows
    return -(-(spans.max_query_length if spans.is_packed else num_queries) // rows) + 1


def name_spans(spans: Spans | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors of `spans` as kernels take them; `unused` stands in where there are none."""
    if spans is None:
        return unused, unused, unused, unused
    return spans.query_start, spans.query_length, spans.key_start, spans.key_length


def name_lists(lists: BlockLists | None, unused: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Counts, indices, rows and room of `lists` as kernels take them; `unused` stands in where there are none."""
    if lists is None:
        return unused, unused, 0, 0
    return lists.counts, lists.indices, lists.counts.shape[2], lists.indices.shape[2]


def is_describable(x: Tensor) -> bool:
    """Whether a GPU's copy engine can read x (B, H, T, D): contiguous rows of distinct memory, 16-byte aligned."""
    steps = [step for step, size in zip(x.stride()[:-1], x.shape, strict=False) if size > 1]
    return (
        x.numel() > 0
        and x.stride(-1) == 1
        and x.data_ptr() % 16 == 0
        and all(step > 0 and step * x.element_size() % 16 == 0 for step in steps)
    )


def find_strides(x: Tensor) -> list[int]:
    """Strides of x (B, H, T, D) that the copy engine takes: that of a dimension of one element may be anything."""
    unused = 8 * x.shape[-1]
    return [step if size > 1 else unused for step, size in zip(x.stride()[:-1], x.shape, strict=False)] + [1]
