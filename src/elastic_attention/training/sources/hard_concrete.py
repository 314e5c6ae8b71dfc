"""PruLong's gates: a hard concrete variable per (layer, KV head) that says how full it is."""

import torch
from torch import Tensor

from ...router import RouteSampler
from .static_mask import StaticMask

_BETA = 2 / 3
_LOW, _HIGH = -0.1, 1.1
_MARGIN = 1e-6


class HardConcrete(StaticMask):
    """Gate z = clamp(1.2 s - 0.1), s = sigmoid((logit(u) + log_alpha) / (2/3)); the route is 1 - z, 1 = sparse."""

    name = "log_alpha"
    constraint = "signed"

    def start(self, num_layers: int, num_heads: int, seed: int) -> Tensor:
        noise = torch.randn(num_layers, num_heads, generator=torch.Generator().manual_seed(seed))
        return 4.0 + 0.01 * noise

    def rank(self) -> Tensor:
        return -self.values

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        log_alpha = self.of_layer(index, len(pooled))
        uniform = sampler.noise.uniform(index, log_alpha.shape[1], 1)[..., 0].clamp(_MARGIN, 1 - _MARGIN)
        stretched = torch.sigmoid((torch.logit(uniform) + log_alpha) / _BETA) * (_HIGH - _LOW) + _LOW
        return 1 - stretched.clamp(0, 1)
