"""Plain data that travels between the layers of the package.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, L layers.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Pattern(Protocol):
    """What a sparse pattern must answer. Positions count the real tokens of one sequence from 0."""

    name: str

    def is_visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bool mask, broadcast of the two int tensors: may this query read this key?"""
        ...

    def count_pairs(self, start: int, stop: int) -> int:
        """Query-key pairs that the queries at positions [start, stop) read."""
        ...

    def count_held(self, num_tokens: int) -> int:
        """Tokens that a sequence of `num_tokens` must keep so that it can be continued."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardRecord:
    """Routes of one forward pass, by layer index.

    Attributes:
        routes: layer index -> (B, G); 1 or True = the KV head is sparse for this sequence. Float with a
            gradient while routes are sampled for training, bool otherwise.
    """

    routes: dict[int, Tensor] = field(default_factory=dict)

    def stack(self) -> Tensor:
        """Routes of all routed layers, (B, L_routed, G), layers in ascending order."""
        return torch.stack([self.routes[layer] for layer in sorted(self.routes)], dim=1)
