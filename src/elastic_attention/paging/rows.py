"""Rows of a pool as packed tensors, and rows that become rings.

Shape letters: R rows = sequences x KV heads, N tokens of all rows, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..types import PackedRows, stage
from .books import RowBooks
from .plain import find_slots
from .pool import PagePool
from .staged import StagedTokens


def gather_rows(pool: PagePool, books: RowBooks, settled: Sequence[int], staged: Sequence[StagedTokens]) -> PackedRows:
    """Copy what the rows hold in the pool, oldest first, and what is staged behind it.

    Args:
        settled: tokens of each sequence in the pool.
    """
    config, batch, heads, device = books.pattern.config, len(settled), books.num_kv_heads, pool.keys.device
    total = books.stored_lengths()
    gaps = [books.lengths[books.sequence(row)] - n for row, n in enumerate(total)]
    paged = [settled[books.sequence(row)] - gap for row, gap in enumerate(gaps)]
    table = torch.tensor([gaps, paged, total, books.rings])
    gap, length, full_length, ring = stage(table, device)
    starts, num_tokens = full_length.cumsum(0) - full_length, sum(total)
    # One token more than there are: padding is written there.
    keys, values = (pool.keys.new_empty(num_tokens + 1, pool.keys.shape[2]) for _ in range(2))
    if any(paged):
        row = torch.repeat_interleave(torch.arange(len(paged), device=device), length, output_size=sum(paged))
        place = torch.arange(sum(paged), device=device) - (length.cumsum(0) - length)[row]
        position = torch.where(place >= config.num_sink_tokens, place + gap[row], place)
        source = pool.find(row, find_slots(position, ring[row].bool(), config))
        target = starts[row] + place
        keys[target], values[target] = pool.keys.flatten(0, 1)[source], pool.values.flatten(0, 1)[source]
    first = starts + length
    behind = torch.zeros(batch, dtype=torch.int32, device=device)
    for part in staged:
        place = part.positions(behind)[:, None]
        target = torch.where(place < 0, num_tokens, first.view(batch, heads, 1) + place)
        keys[target], values[target] = part.keys, part.values
        behind = part.ends(behind)
    return PackedRows(
        keys=keys[:num_tokens],
        values=values[:num_tokens],
        starts=starts.int(),
        lengths=full_length.int(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LiftedRows:
    """Tokens of some rows of one sequence, on their way to other pages.

    Attributes:
        rows: (r,) rows.
        positions: (n,) positions of the tokens.
        keys, values: (r, n, D).
    """

    rows: Tensor
    positions: Tensor
    keys: Tensor
    values: Tensor


def lift_rows(pool: PagePool, rows: Sequence[int], num_settled: int, gap: int, config: StreamingConfig) -> LiftedRows:
    """Take what full rows of a sequence need as rings out of the pool, and free their pages.

    Args:
        num_settled: tokens of the rows in the pool.
        gap: tokens behind the sink that rings of this sequence have dropped.
    """
    device, sink = pool.keys.device, config.num_sink_tokens
    head = torch.arange(min(sink, num_settled), device=device)
    tail = torch.arange(sink + gap, max(sink + gap, num_settled), device=device)
    positions, index = torch.cat([head, tail]), stage(list(rows), device)
    source = pool.find(index[:, None], positions[None])
    lifted = LiftedRows(
        rows=index,
        positions=positions,
        keys=pool.keys.flatten(0, 1)[source],
        values=pool.values.flatten(0, 1)[source],
    )
    pool.release(rows)
    return lifted


def put_rings(pool: PagePool, lifted: LiftedRows, config: StreamingConfig) -> None:
    """Write lifted tokens into the pages of their rows, which are rings now."""
    is_ring = torch.ones_like(lifted.positions, dtype=torch.bool)
    target = pool.find(lifted.rows[:, None], find_slots(lifted.positions, is_ring, config)[None])
    pool.keys.flatten(0, 1)[target], pool.values.flatten(0, 1)[target] = lifted.keys, lifted.values
