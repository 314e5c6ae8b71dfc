"""Routes as block tables: every (piece of a request, KV head) is a sequence of its own, a virtual one.

A cache of pages (blocks, KV heads, tokens, D) is also one of (blocks * KV heads, 1, tokens, D), page b * G + g. A full
head takes all pages of its request; a streaming head takes the pages of the sink and of its local blocks. Keys carry
their rotation and causality is counted from the end, so a stock kernel needs nothing else.

Shape letters: R requests of a step, S pieces, G KV heads, P tokens of a page, W pages of a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..types import stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The new tokens of one request: `num_new` queries that end at `num_tokens`, sparse from a position on."""

    num_new: int
    num_tokens: int
    sparse_from: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Query rows of a step, cut so that every row of a piece has the same streaming pages. All (S,) int64 or bool.

    Attributes:
        request: row of the request in the step.
        first: index of the first query among the tokens of the step.
        count: queries.
        end: tokens of the request up to and with the last query.
        is_sparse: do sparse heads stream here?
    """

    request: Tensor
    first: Tensor
    count: Tensor
    end: Tensor
    is_sparse: Tensor

    def to(self, device: torch.device) -> "Pieces":
        """The same on `device`."""
        return Pieces(**{name: stage(getattr(self, name), device) for name in self.__slots__})


def cut_pieces(spans: Sequence[Span], block: int) -> Pieces:
    """Dense queries of a request are one piece, sparse ones one piece a streaming block.

    Args:
        spans: in the order of the step.
        block: block size of the streaming pattern.
    """
    rows: list[tuple[int, int, int, int, bool]] = []
    offset = 0
    for request, span in enumerate(spans):
        start = position = span.num_tokens - span.num_new
        while position < span.num_tokens:
            is_sparse = position >= span.sparse_from
            edge = (position // block + 1) * block if is_sparse else span.sparse_from
            end = min(edge, span.num_tokens)
            rows.append((request, offset + position - start, end - position, end, is_sparse))
            position = end
        offset += span.num_new
    columns = torch.tensor(rows, dtype=torch.int64).view(-1, 5).unbind(1)
    return Pieces(request=columns[0], first=columns[1], count=columns[2], end=columns[3], is_sparse=columns[4].bool())


def gather_order(pieces: Pieces, num_kv_heads: int) -> Tensor:
    """Rows of the virtual sequences among the (token, KV head) rows of the step, (tokens * G,) int64.

    Virtual sequences stand piece by piece, head by head.
    """
    lengths = pieces.count.repeat_interleave(num_kv_heads)
    head = torch.arange(num_kv_heads, device=lengths.device).repeat(len(pieces.count))
    begin = lengths.cumsum(0) - lengths
    total = int(pieces.count.sum()) * num_kv_heads
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=total)
    token = (
        pieces.first.repeat_interleave(num_kv_heads)[owner] + torch.arange(total, device=owner.device) - begin[owner]
    )
    return token * num_kv_heads + head[owner]


def virtual_starts(pieces: Pieces, num_kv_heads: int) -> Tensor:
    """First row of each virtual sequence, and their end, (S * G + 1,) int32."""
    lengths = pieces.count.repeat_interleave(num_kv_heads)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def make_tables(
    pieces: Pieces, block_table: Tensor, head_is_sparse: Tensor, page: int, pattern: StreamingConfig
) -> tuple[Tensor, Tensor]:
    """Tables of the virtual sequences; no wait for the device, and shapes do not depend on the routes.

    Args:
        block_table: (R, W) int32 pages of each request.
        head_is_sparse: (R, G) bool of one layer, or (L, R, G) of several.
        page: P, divides the block of the pattern.

    Returns:
        (S * G, W) int32 pages, (S * G,) int32 keys of each virtual sequence; with a first dimension L if it was given.
    """
    heads, width, device = head_is_sparse.shape[-1], block_table.shape[1], block_table.device
    sink, block = pattern.num_sink_tokens, pattern.block_size
    is_sparse = head_is_sparse[..., pieces.request, :] & pieces.is_sparse[:, None]
    first_local = ((pieces.end - 1) // block + 1) * block - pattern.local_window
    gap = torch.where(is_sparse, (first_local - sink).clamp(min=0)[:, None], 0)  # tokens behind the sink
    column = torch.arange(width, device=device)
    source = torch.where(column < sink // page, column, column + (gap // page)[..., None]).clamp(max=width - 1)
    pages = block_table[pieces.request].unsqueeze(1).expand(source.shape).gather(-1, source)
    table = pages * heads + torch.arange(heads, device=device, dtype=pages.dtype)[:, None]
    return table.flatten(-3, -2), (pieces.end[:, None] - gap).flatten(-2).int()
