"""The Attention Router of one layer (Elastic Attention, section 3.1)."""

import torch
from torch import Tensor, nn

from ..config import RouterConfig
from .sampling import RouteSampler

FULL, SPARSE = 0, 1


class AttentionRouter(nn.Module):
    """Task MLP and router MLP with weights shared by the KV heads of a layer. Runs in float32."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        c = config
        self.task_mlp = nn.Sequential(
            nn.Linear(c.head_dim, c.task_hidden), nn.SiLU(), nn.Linear(c.task_hidden, c.task_width)
        )
        self.router_mlp = nn.Sequential(
            nn.Linear(c.task_width, c.router_hidden),
            nn.SiLU(),
            nn.Linear(c.router_hidden, c.router_width),
            nn.SiLU(),
            nn.Linear(c.router_width, 2),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear) and not module.weight.is_meta:  # there the operation is slow, for nothing
                nn.init.normal_(module.weight, std=c.init_std)
                nn.init.zeros_(module.bias)

    def logits(self, pooled: Tensor, budget: float = 0.0) -> Tensor:
        """(B, G, 2) float32 logits, class 1 = sparse; `budget` is added to the sparse logit."""
        logits = self.router_mlp(self.task_mlp(pooled.float()))
        return logits + torch.tensor([0.0, budget], device=logits.device) if budget else logits

    def forward(
        self, pooled: Tensor, *, layer: int, budget: float = 0.0, sampler: RouteSampler | None = None
    ) -> Tensor:
        """Decide per sequence and KV head.

        Args:
            pooled: (B, G, D) mean boundary key before RoPE.
            layer: layer index.
            budget: added to the sparse logits; larger = sparser.
            sampler: noise and temperature of training; None decides by argmax.

        Returns:
            (B, G): bool without a sampler, float32 straight-through with one; True or 1 = sparse.
        """
        logits = self.logits(pooled, budget)
        return logits[..., SPARSE] > logits[..., FULL] if sampler is None else sampler(logits, layer)
