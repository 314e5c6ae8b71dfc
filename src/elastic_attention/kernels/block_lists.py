"""Which key blocks each query block of a LISTS head reads: compact, on the device, never seen by the host.

Shape letters: B sequences, T queries, S keys, H query heads, M query blocks, N key blocks, b block size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .spans import Spans

_MOST_BLOCKS = torch.iinfo(torch.int16).max


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLists:
    """Ascending key blocks of every query block, packed as a triangle.

    Blocks count positions of the sequence (real tokens before a token), b at a time: query block m holds the queries
    at positions [m * b, (m + 1) * b), key block n the keys there. A sequence whose queries start at position
    p = key_length - query_length begins with query block first = p // b; row r of the lists is query block
    m = first + r. Row r has room for the m + 1 blocks that causality allows, rows stand back to back:

        offset(r) = m * (m + 1) // 2 - first * (first + 1) // 2
        blocks    = indices[sequence, head, offset(r) : offset(r) + counts[sequence, head, r]]

    Promises, for rows that hold at least one query of a LISTS head:
        - 1 <= count <= m + 1, blocks ascend, each once;
        - the first block is 0 and the last one is m, the diagonal: the only one that needs the causal mask;
        - queries in `dense_rows` (responses) do not take part in the choice. They read every key, whatever the list
          says. A query block of such queries alone lists all its m + 1 blocks. A query block with both kinds holds
          the list of its other queries: a kernel reads all m + 1 blocks there and hides the unlisted ones from
          the queries outside of `dense_rows` (a pointer that walks along the ascending list tells which).
    Rows of heads in another mode and rows behind a sequence's last query have count 0; what `indices` holds behind a
    row's count is undefined.

    Memory, for H = 32 and one sequence: 34 MB at 128K tokens, 134 MB at 256K (int16, b = 128), while the layer runs.

    Attributes:
        counts: (B, H, M) int32.
        indices: (B, H, E) int16, E = N (N + 1) / 2 - (N - M) (N - M + 1) / 2; both tensors are contiguous.
        block_size: b, in tokens; query blocks and key blocks are of one size.
    """

    counts: Tensor
    indices: Tensor
    block_size: int

    def to_mask(self, first_blocks: Tensor, num_blocks: int) -> Tensor:
        """The lists as a bool mask (B, H, M, N): may query block first + r read key block n?

        Args:
            first_blocks: (B,) int, `first` of each sequence, as `find_first_blocks` gives it.
            num_blocks: N.
        """
        starts, _ = _locate_rows(first_blocks, self.counts.shape[2])
        places = torch.arange(num_blocks, device=self.counts.device)
        inside = places < self.counts[..., None]
        reach = (starts[:, None, :, None] + places).clamp(max=self.indices.shape[2] - 1)
        flat = reach.expand(*inside.shape).flatten(2)
        blocks = self.indices.long().gather(2, flat).view(inside.shape)
        mask = torch.zeros(*inside.shape[:3], num_blocks + 1, dtype=torch.bool, device=inside.device)
        return mask.scatter_(3, blocks.where(inside, num_blocks), True)[..., :num_blocks]


def pack_mask(mask: Tensor, first_blocks: Tensor, block_size: int) -> BlockLists:
    """Lists from a bool mask (B, H, M, N) that keeps to causality; plain PyTorch, no sort, no host sync.

    Args:
        mask: True = query block first + r reads key block n. Query blocks behind the last of N list nothing.
        first_blocks: (B,) int.
        block_size: tokens of a block.
    """
    num_rows, num_blocks = mask.shape[2:]
    capacity = count_entries(num_rows, num_blocks)
    starts, last = _locate_rows(first_blocks, num_rows)
    blocks = torch.arange(num_blocks, device=mask.device)
    kept = mask & ((blocks <= last[..., None]) & (last < num_blocks)[..., None])[:, None]
    places = starts[:, None, :, None] + kept.cumsum(3) - 1
    indices = torch.zeros(*mask.shape[:2], capacity + 1, dtype=torch.int16, device=mask.device)
    source = blocks.to(torch.int16).expand(kept.shape).flatten(2)
    indices.scatter_(2, places.where(kept, capacity).flatten(2), source)
    return BlockLists(
        counts=kept.sum(3, dtype=torch.int32),
        indices=indices[..., :capacity].contiguous(),
        block_size=block_size,
    )


def count_entries(num_rows: int, num_blocks: int) -> int:
    """E: room for the last `num_rows` rows of a triangle of `num_blocks`; earlier rows need less.

    Raises:
        ValueError: an index would not fit its 16 bits.
    """
    if num_blocks > _MOST_BLOCKS:
        raise ValueError(f"{num_blocks} key blocks are more than {_MOST_BLOCKS}; use larger blocks or fewer tokens.")
    rest = num_blocks - num_rows
    return num_blocks * (num_blocks + 1) // 2 - rest * (rest + 1) // 2


def count_rows(num_queries: int, num_keys: int, block_size: int, spans: Spans | None = None) -> tuple[int, int]:
    """(M, N) that hold every sequence of a batch, from numbers that the host knows.

    Args:
        num_queries, num_keys: T and S of the tensors.
        block_size: tokens of a block.
        spans: where the sequences lie; None = every element holds its last T of S positions.
    """
    num_blocks = -(-num_keys // block_size)
    if spans is None:
        return num_blocks - (num_keys - num_queries) // block_size, num_blocks
    # Queries that start inside of a block reach into one block more than their number needs.
    return min(num_blocks, -(-spans.max_query_length // block_size) + 1), num_blocks


def find_first_blocks(batch: int, num_queries: int, num_keys: int, block_size: int, spans: Spans | None) -> Tensor:
    """(B,) int: the first query block of each sequence, on the device of `spans` (the CPU without them)."""
    if spans is None:
        return torch.full((batch,), (num_keys - num_queries) // block_size)
    return (spans.key_length - spans.query_length) // block_size


def _locate_rows(first_blocks: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Offset and diagonal block of every row, both (B, M)."""
    first = first_blocks.long()[:, None]
    last = first + torch.arange(num_rows, device=first.device)
    return last * (last + 1) // 2 - first * (first + 1) // 2, last
