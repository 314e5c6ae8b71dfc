"""XAttention's block lists on the GPU: two kernels, no sort, nothing read by the host.

The scores that pass from the first kernel to the second are cut to a budget by taking the query blocks in turns.

Shape letters: B sequences, T queries, S keys, H query heads, G KV heads, D head dim, M query blocks, N key blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...config import XAttentionConfig
from ..arguments import find_strides, name_spans
from ..block_lists import BlockLists, count_entries, count_rows
from ..device import on_its_device
from ..modes import LISTS
from ..spans import Spans
from .block_selection import select_blocks
from .shapes import has_descriptors
from .strided_scores import score_strides
from .tiles import can_describe

SCRATCH_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTile:
    """Sizes of one program of the scoring kernel.

    Attributes:
        rows, columns: strided queries and strided keys of a tile.
        features: of the stride * D features, how many a step multiplies.
        group: tiles of rows that share their keys in the second-level cache.
        warps, stages: of the program and of its pipeline.
        is_described: read through tensor descriptors where the layout allows it.
    """

    rows: int
    columns: int
    features: int = 64
    group: int = 4
    warps: int = 8
    stages: int = 3
    is_described: bool = False


def choose_tile(q: Tensor, has_descriptors: bool) -> ScoreTile:
    """Sizes that fit the dtype of `q` and the way its tiles are loaded."""
    if q.dtype == torch.float32:
        return ScoreTile(rows=64, columns=64, features=32, warps=4, stages=2)
    if has_descriptors:
        return ScoreTile(rows=128, columns=256, stages=4, is_described=True)
    return ScoreTile(rows=128, columns=128, warps=4)


@on_its_device
def build_block_lists(
    q: Tensor,
    k: Tensor,
    modes: Tensor,
    config: XAttentionConfig,
    scale: float,
    *,
    spans: Spans | None = None,
    dense_rows: Tensor | None = None,
    tile: ScoreTile | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> BlockLists:
    """Score and select the key blocks of every LISTS head (Elastic Attention, section 3.2; XAttention).

    Args:
        q: (B, H, T, D) float32, float16 or bfloat16, last dimension contiguous; the queries are the last T of S
            positions. Packed: (1, H, tokens, D) with `spans`.
        k: (B, G, S, D), G divides H.
        modes: (sequences, G) int32 on the device; other heads than LISTS cost no more than empty programs.
        config: block, stride, and the threshold or the forced density.
        scale: factor of the attention scores, usually D ** -0.5.
        spans: where the sequences lie, None = every element is one sequence.
        dense_rows: (sequences, 2) int32, positions [start, stop) of queries that read everything and do not vote.
        tile: sizes of the scoring programs, default by device and dtype.
        scratch_bytes: budget of the scores between the kernels; a smaller one means more launches.

    Returns:
        Lists as `BlockLists` promises, chosen by the rule of `kernels.xattention`.
    """
    sequences, num_kv_heads = modes.shape
    num_q_heads, num_queries, width = q.shape[1:]
    num_keys, stride, slots = k.shape[2], config.stride, config.block_size // config.stride
    num_rows, num_blocks = count_rows(num_queries, num_keys, config.block_size, spans)
    capacity = count_entries(num_rows, num_blocks)
    counts = torch.zeros(sequences, num_q_heads, num_rows, dtype=torch.int32, device=q.device)
    indices = torch.empty(sequences, num_q_heads, capacity, dtype=torch.int16, device=q.device)
    lists = BlockLists(counts=counts, indices=indices, block_size=config.block_size)
    if not num_queries or not num_q_heads * sequences:
        return lists

    is_aligned = spans is None and (num_keys - num_queries) % stride == 0
    is_describable = is_aligned and num_queries >= stride and can_describe(q, k)
    tile = tile or choose_tile(q, is_describable and has_descriptors(q.device))
    is_described = tile.is_described and is_describable
    features, group = min(tile.features, width & -width), num_q_heads // num_kv_heads
    common = dict(
        LISTS=LISTS,
        HEADS=group,
        STRIDE=stride,
        SLOTS=slots,
        HAS_SPANS=spans is not None,
        HAS_DENSE=dense_rows is not None,
    )
    places = name_spans(spans, modes)
    dense = modes if dense_rows is None else dense_rows
    budget = scratch_bytes // (4 * sequences * num_q_heads * slots)
    for start, rows, reach in _cut_rows(num_rows, num_blocks, budget, spans is not None):
        num_columns = triton.cdiv(reach * slots, tile.columns)
        pitch = num_columns * tile.columns // slots
        num_groups = triton.cdiv(triton.cdiv(rows * slots, tile.rows) * group, tile.group)
        scores = torch.empty(sequences * num_q_heads, rows * slots, pitch, dtype=torch.float32, device=q.device)
        score_strides[(sequences * num_kv_heads * num_groups * num_columns * tile.group,)](
            q,
            k,
            _describe(q, stride, tile.rows, features) if is_described else q,
            _describe(k, stride, tile.columns, features) if is_described else k,
            modes,
            scores,
            places,
            dense,
            q.stride()[:3],
            k.stride()[:3],
            num_queries,
            num_keys,
            num_kv_heads,
            num_columns,
            num_groups,
            start,
            rows,
            pitch,
            scale * math.log2(math.e) / stride,
            D=width,
            BM=tile.rows,
            BN=tile.columns,
            BK=features,
            GROUP=tile.group,
            IS_PACKED=spans is not None and spans.is_packed,
            IS_WHOLE=is_aligned and dense_rows is None and num_keys % stride == 0,
            IS_DESCRIBED=is_described,
            **common,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        block_width = max(32, triton.next_power_of_2(pitch))
        select_blocks[(sequences * num_q_heads, rows)](
            scores,
            modes,
            counts,
            indices,
            places,
            dense,
            num_queries,
            num_keys,
            num_kv_heads,
            start,
            rows,
            num_rows,
            capacity,
            pitch,
            config.threshold if config.density is None else config.density,
            WIDTH=block_width,
            BY_COUNT=config.density is not None,
            **common,
            num_warps=min(16, max(1, block_width // 256)),
        )
    return lists


def _cut_rows(num_rows: int, num_blocks: int, budget: int, is_ragged: bool) -> Iterator[tuple[int, int, int]]:
    """Query blocks (first, number) of every launch, and how many key blocks they reach; number * reach <= budget."""
    start = 0
    while start < num_rows:
        first = num_blocks - num_rows + start
        rows = budget // num_blocks if is_ragged else int(math.sqrt(first * first / 4 + budget) - first / 2)
        rows = min(max(rows // 16 * 16, 16), num_rows - start)  # whole tiles
        yield start, rows, num_blocks if is_ragged else first + rows
        start += rows


def _describe(x: Tensor, stride: int, rows: int, features: int) -> TensorDescriptor:
    """(B, H, T, D) as (B, H, whole strides, tokens of a stride side by side), in tiles of rows x features."""
    batch, heads, tokens, width = x.shape
    shape = [batch, heads, tokens // stride, (stride - 1) * x.stride(2) + width]
    *outer, token, _ = find_strides(x)
    return TensorDescriptor(x, shape, [*outer, stride * token, 1], [1, 1, rows, features])
