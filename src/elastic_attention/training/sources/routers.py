"""The routers of a handle: one decision per KV head (Elastic Attention) or per layer (Flux Attention)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.checkpoint import save_adapter
from ...router import RouteSampler
from .base import RouteModel

if TYPE_CHECKING:
    from ...models.handle import Handle
    from ...models.routing import RouteSource
    from ..recipe import Recipe


class HeadRouters(RouteModel):
    """Routers that read the pooled keys of a KV head."""

    def __init__(self, recipe: "Recipe", handle: "Handle") -> None:
        self.handle, self.routers = handle, handle.routers.requires_grad_(True)

    def parameters_to_train(self) -> list[nn.Parameter]:
        return list(self.routers.parameters())

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        return self.routers[index](pooled, layer=index, sampler=sampler)

    def inference(self) -> "RouteSource | Tensor":
        return self.handle.decide

    def state(self) -> dict[str, Tensor]:
        return dict(self.routers.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        self.routers.load_state_dict(state)

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        config = dataclasses.replace(self.handle.config, training=facts)
        save_adapter(folder, config, self.routers, dtype=torch.bfloat16)


class LayerRouters(HeadRouters):
    """Routers that read the mean pooled query of a layer."""

    granularity = "layer"
