"""The routers of a handle: one decision per KV head (Elastic Attention) or per layer (Flux Attention)."""

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.checkpoint import save_adapter
from ...router import RouteSampler, average_heads
from .base import RouteModel
from .input_scaling import InputScaling

if TYPE_CHECKING:
    from ...models.handle import Handle
    from ...models.routing import RouteSource
    from ..recipe import Recipe


class HeadRouters(RouteModel):
    """Routers that read the pooled keys of a KV head.

    Attributes:
        scaling: of what they read while they learn; None = it is left as it is. Exported routers read it as it is.
    """

    def __init__(self, recipe: "Recipe", handle: "Handle") -> None:
        self.handle, self.routers = handle, handle.routers.requires_grad_(True)
        self.layers = handle.routed_layers
        width, device = handle.config.base_model.head_dim, handle.model.device
        self.scaling = InputScaling(len(self.layers), width, device) if recipe.routes.standardize else None

    def read(self, pooled: Tensor) -> Tensor:
        """What the routers of a layer read before it is scaled, (B, G, D) float32."""
        return pooled.float()

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        return self.routers[index](self._scale(index, pooled), layer=index, sampler=sampler)

    def _scale(self, index: int, pooled: Tensor) -> Tensor:
        return pooled if self.scaling is None else self.scaling(self.layers.index(index), self.read(pooled))

    def parameters_to_train(self) -> list[nn.Parameter]:
        return list(self.routers.parameters())

    def inference(self) -> "RouteSource | Tensor":
        return self.handle.decide if self.scaling is None else self._decide

    @torch.no_grad()
    def _decide(self, index: int, pooled: Tensor) -> Tensor:
        return self.routers[index](self._scale(index, pooled), layer=index)

    def state(self) -> dict[str, Tensor]:
        scaling = self.scaling
        return dict(self.routers.state_dict()) | (
            {} if scaling is None else {"input_shift": scaling.shift, "input_matrix": scaling.matrix}
        )

    def load(self, state: dict[str, Tensor]) -> None:
        own = dict(state)
        if self.scaling is not None:
            self.scaling.load(own.pop("input_shift"), own.pop("input_matrix"))
        self.routers.load_state_dict(own)

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        config = dataclasses.replace(self.handle.config, training=facts)
        routers = copy.deepcopy(self.routers).to(torch.bfloat16)
        if self.scaling is not None:
            for row, index in enumerate(self.layers):
                # It subtracts numbers far larger than what is left, so it stays in float32.
                first: Any = copy.deepcopy(self.routers[index].task_mlp[0])
                self.scaling.fold(row, first)
                routers[index].task_mlp[0] = first
        save_adapter(folder, config, routers)


class LayerRouters(HeadRouters):
    """Routers that read the mean pooled query of a layer."""

    granularity = "layer"

    def read(self, pooled: Tensor) -> Tensor:
        return average_heads(pooled, dim=1)
