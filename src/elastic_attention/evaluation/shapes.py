"""Sizes of a causal prefill: its random inputs, its routes, and what it has to compute.

Shape letters: B batch, S tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..patterns import build_pattern
from ..sparsity import count_causal_pairs, count_read_pairs

SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """Sizes of one causal prefill."""

    tokens: int
    batch: int = 1
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128

    def draw(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Random q (B, H, S, D), k and v (B, G, S, D), as views of (B, S, heads, D), which is how models have them."""
        generator = torch.Generator(device).manual_seed(SEED)
        q, k, v = (
            torch.randn(
                self.batch, self.tokens, heads, self.head_dim, device=device, dtype=dtype, generator=generator
            ).transpose(1, 2)
            for heads in (self.num_q_heads, self.num_kv_heads, self.num_kv_heads)
        )
        return q, k, v

    def spread_sparse(self, ratio: float) -> Tensor:
        """(B, G) bool with the number of sparse heads nearest to `ratio` of all, spread evenly."""
        total = self.batch * self.num_kv_heads
        count = round(ratio * total)
        place = torch.arange(total)
        return ((place + 1) * count // total > place * count // total).view(self.batch, self.num_kv_heads)

    def count_flops(self, routes: Tensor, pattern: StreamingConfig) -> float:
        """Floating-point operations on computed blocks, the diagonal counted half."""
        sparse, total = int(routes.sum()), routes.numel()
        read = count_read_pairs(build_pattern(pattern), 0, self.tokens, num_heads=total, num_sparse=sparse)
        pairs = read - total * self.tokens / 2  # a diagonal block holds b (b + 1) / 2 pairs and counts b * b / 2
        return 4.0 * self.head_dim * pairs * self.num_q_heads / self.num_kv_heads

    def visited_fraction(self, routes: Tensor, pattern: StreamingConfig) -> float:
        """Query-key pairs read over causal pairs."""
        sparse, total = int(routes.sum()), routes.numel()
        read = count_read_pairs(build_pattern(pattern), 0, self.tokens, num_heads=total, num_sparse=sparse)
        return read / (total * count_causal_pairs(0, self.tokens))

    def as_row(self) -> dict[str, int]:
        """The keys of a record's row."""
        return {
            "tokens": self.tokens,
            "batch": self.batch,
            "heads": self.num_q_heads,
            "kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
        }
