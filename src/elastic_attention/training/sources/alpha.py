"""DuoAttention's blend: every KV head mixes its full and its sparse output by a learned weight in [0, 1]."""

import torch
from torch import Tensor

from ...router import RouteSampler
from .static_mask import StaticMask


class BlendWeights(StaticMask):
    """Output alpha * full + (1 - alpha) * sparse, alpha from 1, without noise; the route is 1 - alpha."""

    name = "alpha"
    loss = "distillation"
    constraint = "mean_full"

    def start(self, num_layers: int, num_heads: int, seed: int) -> Tensor:
        return torch.ones(num_layers, num_heads)

    def rank(self) -> Tensor:
        return -self.values

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        return 1 - self.of_layer(index, len(pooled))

    @torch.no_grad()
    def after_step(self) -> None:
        self.values.clamp_(0, 1)
