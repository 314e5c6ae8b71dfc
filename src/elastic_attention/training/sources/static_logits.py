"""The head router's sampling with a learned logit in place of the router."""

import torch
from torch import Tensor

from ...router import RouteSampler
from .static_mask import StaticMask


class StaticLogits(StaticMask):
    """One sparse logit per (layer, KV head), sampled like the logits of a router."""

    name = "logits"

    def start(self, num_layers: int, num_heads: int, seed: int) -> Tensor:
        return torch.zeros(num_layers, num_heads)

    def rank(self) -> Tensor:
        return self.values

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        logits = self.of_layer(index, len(pooled))
        return sampler(torch.stack([torch.zeros_like(logits), logits], dim=-1), index)
