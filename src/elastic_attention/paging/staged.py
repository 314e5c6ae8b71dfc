"""Tokens that have no pages yet.

Shape letters: B batch, T new tokens, G KV heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import stage


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedTokens:
    """The tokens of one append.

    Attributes:
        keys, values: (B, G, T, D).
        real: (B, T) bool, None = all real.
        counts: real tokens of each sequence.
    """

    keys: Tensor
    values: Tensor
    real: Tensor | None
    counts: tuple[int, ...]

    def count_bytes(self) -> int:
        """Bytes of keys and values, padding included."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values))

    def positions(self, start: Tensor) -> Tensor:
        """(B, T) int32 positions of the tokens if sequences hold `start` (B,) before them; -1 = padding."""
        if self.real is None:
            steps = torch.arange(self.keys.shape[2], dtype=torch.int32, device=start.device)
            return start[:, None] + steps
        rank = self.real.cumsum(1, dtype=torch.int32) - 1
        return (start[:, None] + rank).masked_fill(~self.real, -1)

    def ends(self, start: Tensor) -> Tensor:
        """(B,) int32 lengths of the sequences with these tokens."""
        return start + (self.keys.shape[2] if self.real is None else self.real.sum(1, dtype=torch.int32))

    def crop(self, counts: Sequence[int]) -> "StagedTokens":
        """The first `counts[b]` real tokens of each sequence."""
        counts = tuple(counts)
        if counts == self.counts:
            return self
        if self.real is None and min(counts) == max(counts):
            keys, values = (x[:, :, : counts[0]] for x in (self.keys, self.values))
            return StagedTokens(keys=keys, values=values, real=None, counts=counts)
        real = self.real
        if real is None:
            real = torch.ones(len(counts), self.keys.shape[2], dtype=torch.bool, device=self.keys.device)
        real = real & (real.cumsum(1) <= stage(counts, real.device)[:, None])
        return StagedTokens(keys=self.keys, values=self.values, real=real, counts=counts)

    def select(self, index: Tensor, indices: Sequence[int]) -> "StagedTokens":
        """These sequences in this order; `index` is `indices` on the device."""
        return StagedTokens(
            keys=self.keys[index],
            values=self.values[index],
            real=None if self.real is None else self.real[index],
            counts=tuple(self.counts[b] for b in indices),
        )
