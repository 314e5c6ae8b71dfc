"""MoBA (mixture of block attention, arXiv 2502.13189): every query reads its own block and the blocks whose mean key it
likes best.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .token_choice import TokenChoice, average_blocks, mark_best


@dataclass(frozen=True, kw_only=True, slots=True)
class MobaConfig:
    """Sizes of MoBA.

    Attributes:
        block_size: tokens of a key block.
        num_blocks: k, blocks that a query reads, its own among them.
    """

    block_size: int = 1024
    num_blocks: int = 8
    kind: str = field(default="moba", init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


class MobaPattern(TokenChoice):
    """Gate g = q . mean(K of the block); a query reads its own block and the k - 1 with the largest gates before it."""

    name = "moba"

    def __init__(self, config: MobaConfig) -> None:
        self.config = config
        self.block_size, self.most_blocks = config.block_size, config.num_blocks - 1
        self.dense_tokens = config.block_size * config.num_blocks

    def choose_blocks(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """(H, T, N) bool; gates are float32 and have no scale, because only their order counts."""
        means = average_blocks(k, self.block_size).repeat_interleave(len(q) // len(k), dim=0)
        gates = q.float() @ means.transpose(1, 2)
        own = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)[:, None] // self.block_size
        blocks = torch.arange(gates.shape[2], device=q.device)
        gates = gates.masked_fill(blocks > own, float("-inf")).masked_fill(blocks == own, float("inf"))
        return mark_best(gates, self.config.num_blocks)
