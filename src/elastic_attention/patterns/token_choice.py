"""What patterns share whose queries choose their key blocks one by one: MoBA, InfLLM-V2.

No block list can say this, because a list serves a whole block of queries. So these patterns run in plain PyTorch on
any device (backend "cpu"), score by score with the keys hidden that are not chosen: for quality, not for speed.

Shape letters: T queries, S keys, H query heads, G KV heads, D head dim, N key blocks.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..sparsity import count_causal_pairs
from .data_choice import DataChoice


class TokenChoice(DataChoice, ABC):
    """A pattern whose reads depend on the data, though their number does not.

    Attributes:
        block_size: tokens of a key block.
        most_blocks: whole blocks that a query reads besides its own, where there are so many.
        dense_tokens: a sequence of up to this many tokens reads everything.
    """

    name: str
    block_size: int
    most_blocks: int
    dense_tokens: int

    @abstractmethod
    def choose_blocks(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """Which blocks each query reads, its own among them.

        Args:
            q: (H, T, D), the last T of S positions.
            k: (G, S, D).
            scale: factor of the attention scores.

        Returns:
            (H, T, N) bool; blocks behind a query do not matter.
        """

    def show_keys(self, q: Tensor, k: Tensor, num_keys: int, scale: float) -> Tensor:
        """(H, T, S) bool: which key each query reads; arguments as in `choose_blocks`.

        Args:
            num_keys: of the whole sequence, of which k may be the beginning.
        """
        if num_keys <= self.dense_tokens:
            shown = torch.ones(len(q), q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        else:
            key_blocks = torch.arange(k.shape[1], device=k.device) // self.block_size
            shown = self.choose_blocks(q, k, scale)[:, :, key_blocks]
        positions = torch.arange(k.shape[1], device=k.device)
        return shown & (positions <= positions[k.shape[1] - q.shape[1] :, None])

    def count_pairs(self, start: int, stop: int) -> int:
        """Query-key pairs that the queries at positions [start, stop) of a sequence of `stop` tokens read."""
        if stop <= self.dense_tokens:
            return count_causal_pairs(start, stop)
        return self._count_pairs_before(stop) - self._count_pairs_before(start)

    def _count_pairs_before(self, stop: int) -> int:
        whole, rest = divmod(stop, self.block_size)
        own = whole * count_causal_pairs(0, self.block_size) + count_causal_pairs(0, rest)
        # Of block j, every query reads min(j, most_blocks) blocks before it.
        growing = min(whole, self.most_blocks + 1)
        blocks = growing * (growing - 1) // 2 + (whole - growing) * self.most_blocks
        return own + self.block_size * (self.block_size * blocks + rest * min(whole, self.most_blocks))


def average_blocks(k: Tensor, block_size: int) -> Tensor:
    """(G, N, D) float32: the mean key of every block; the last one may be short."""
    num_keys = k.shape[1]
    padded = torch.nn.functional.pad(k.float(), (0, 0, 0, -num_keys % block_size)).unflatten(1, (-1, block_size))
    sizes = (num_keys - torch.arange(padded.shape[1], device=k.device) * block_size).clamp(max=block_size)
    return padded.sum(2) / sizes[:, None]


def mark_best(scores: Tensor, count: int) -> Tensor:
    """Bool like scores: the `count` largest entries of each row, of equal ones the earlier."""
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
