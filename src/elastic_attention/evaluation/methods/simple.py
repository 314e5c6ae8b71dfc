"""Methods without anything learned: dense, all streaming, random heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...config import ElasticConfig
from ...router import RouteNoise
from .base import ChooseRoutes, Method, MethodKind, choose_all

if TYPE_CHECKING:
    from ...models.handle import Handle


def draw_routes(config: ElasticConfig, sample_ids: Sequence[int], share: float) -> Tensor:
    """(B, L, G) bool, True = sparse with probability `share`; the same for a sample whatever batch it is in."""
    noise = RouteNoise(seed=0, step=0, sample_ids=torch.tensor(list(sample_ids)))
    base = config.base_model
    layers = [noise.uniform(layer, base.num_kv_heads, 1)[..., 0] < share for layer in range(base.num_layers)]
    return torch.stack(layers, dim=1)


def _choose_random(method: Method, handle: Handle) -> ChooseRoutes:
    share = method.target
    assert share is not None  # `find_method` saw to it
    return lambda ids: draw_routes(handle.config, ids, share)


DENSE = MethodKind(summary="the base model, all keys")
ALL_SPARSE = MethodKind(summary="every head streams: sink and window", choose=choose_all)
RANDOM = MethodKind(summary="heads stream at random, by sample", needs="target", choose=_choose_random)
