"""The routers of a model."""

from collections.abc import Sequence

from torch import nn

from ..config import RouterConfig
from .attention_router import AttentionRouter
from .layer_router import LayerRouter

_KINDS: dict[str, type[AttentionRouter]] = {"head": AttentionRouter, "layer": LayerRouter}


class RouterStack(nn.Module):
    """One router a layer, by layer index: state dict names `layers.{i}.task_mlp.0.weight` and so on."""

    def __init__(self, config: RouterConfig, layer_indices: Sequence[int], granularity: str = "head") -> None:
        super().__init__()
        kind = _KINDS[granularity]
        self.layers = nn.ModuleDict({str(i): kind(config) for i in layer_indices})

    def __getitem__(self, layer: int) -> AttentionRouter:
        router = self.layers[str(layer)]
        assert isinstance(router, AttentionRouter)
        return router
