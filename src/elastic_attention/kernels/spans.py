"""Where the sequences of a batch lie in padded or packed tensors, as numbers on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Rows [start, start + length) of each sequence; nothing here is ever read by the host.

    Padded and plain batches: rows count along T of (B, H, T, D), one sequence an element. Packed: tensors are
    (1, H, N, D) and the sequences follow each other along N. A sequence's queries are the last of its keys.

    Attributes:
        query_start, query_length, key_start, key_length: (sequences,) int32.
        is_packed: the sequences share one element.
        max_query_length: host bound on query_length, for the size of a launch.
        is_whole: packed, and the sequences are whole (as many queries as keys) and fill all rows without a gap.
    """

    query_start: Tensor
    query_length: Tensor
    key_start: Tensor
    key_length: Tensor
    is_packed: bool
    max_query_length: int
    is_whole: bool = False


def pack_whole(length: Tensor, longest: int) -> Spans:
    """Spans of whole sequences that follow each other in one row without a gap.

    Args:
        length: (sequences,) int32, tokens of each.
        longest: the largest of them, which the host knows.
    """
    start = length.cumsum(0, dtype=torch.int32) - length
    return Spans(
        query_start=start,
        query_length=length,
        key_start=start,
        key_length=length,
        is_packed=True,
        max_query_length=longest,
        is_whole=True,
    )


def list_spans(spans: Spans | None, q: Tensor, k: Tensor) -> Iterator[tuple[int, int, slice, slice]]:
    """The sequences that have queries, for code that the host drives.

    Args:
        spans: None = every element holds its last T of S positions.
        q, k: (B, H, T, D) and (B, G, S, D).

    Yields:
        Number of the sequence, element of the batch, rows of its queries and rows of its keys.
    """
    if spans is None:
        if q.shape[2]:
            yield from ((row, row, slice(0, q.shape[2]), slice(0, k.shape[2])) for row in range(len(q)))
        return
    columns = (spans.query_start, spans.query_length, spans.key_start, spans.key_length)
    for row, (first, taken, start, length) in enumerate(zip(*(x.tolist() for x in columns), strict=True)):
        if taken:
            element = 0 if spans.is_packed else row
            yield row, element, slice(first, first + taken), slice(start, start + length)
