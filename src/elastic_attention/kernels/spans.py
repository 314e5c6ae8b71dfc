"""Where the sequences of a batch lie in padded or packed tensors, as numbers on the device."""

from dataclasses import dataclass

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
    """

    query_start: Tensor
    query_length: Tensor
    key_start: Tensor
    key_length: Tensor
    is_packed: bool
    max_query_length: int
