"""What learns: head routers, or one static mask for all inputs. Both are sampled by the same code."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.checkpoint import save_adapter
from ..models.handle import Handle
from ..records import write_file
from ..router import RouteSampler
from .recipe import Recipe

STATIC_FILE = "static_routes.safetensors"


class RouteModel(Protocol):
    """A trainable source of routes."""

    def parameters_to_train(self) -> list[nn.Parameter]:
        """The parameters, in a fixed order."""
        ...

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        """Float routes (B, G) of layer `index` with a gradient."""
        ...

    def decide(self, index: int, pooled: Tensor) -> Tensor:
        """Routes (B, G) bool as inference takes them."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore `state()`."""
        ...

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write what inference needs."""
        ...


class HeadRouters:
    """The routers of a handle (Elastic Attention)."""

    def __init__(self, handle: Handle) -> None:
        self.handle, self.routers = handle, handle.routers.requires_grad_(True)

    def parameters_to_train(self) -> list[nn.Parameter]:
        return list(self.routers.parameters())

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        return self.routers[index](pooled, layer=index, sampler=sampler)

    def decide(self, index: int, pooled: Tensor) -> Tensor:
        return self.handle.decide(index, pooled)

    def state(self) -> dict[str, Tensor]:
        return dict(self.routers.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        self.routers.load_state_dict(state)

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        config = dataclasses.replace(self.handle.config, training=facts)
        save_adapter(folder, config, self.routers, dtype=torch.bfloat16)


class StaticRoutes:
    """One learned logit per (layer, KV head); inference keeps the sparsest share, exactly at the wanted MSR."""

    def __init__(self, handle: Handle, msr: float) -> None:
        base = handle.config.base_model
        self.layers, self.msr = handle.routed_layers, msr
        self.num_layers = base.num_layers
        device = handle.model.device
        self.logits = nn.Parameter(torch.zeros(len(self.layers), base.num_kv_heads, device=device))

    def parameters_to_train(self) -> list[nn.Parameter]:
        return [self.logits]

    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        logits = self.logits[self.layers.index(index)].expand(len(pooled), -1)
        return sampler(torch.stack([torch.zeros_like(logits), logits], dim=-1), index)

    def mask(self) -> Tensor:
        """(L, G) bool on the host, True = sparse: the round(msr * heads) largest logits."""
        flat = self.logits.detach().flatten().cpu()
        chosen = torch.zeros(flat.shape, dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[: round(self.msr * len(flat))]] = True
        full = torch.zeros(self.num_layers, self.logits.shape[1], dtype=torch.bool)
        full[list(self.layers)] = chosen.view(self.logits.shape)
        return full

    def decide(self, index: int, pooled: Tensor) -> Tensor:
        return self.mask()[index].expand(len(pooled), -1)

    def state(self) -> dict[str, Tensor]:
        return {"logits": self.logits.detach()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.logits.copy_(state["logits"])

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        from safetensors.torch import save

        tensors = {"head_is_sparse": self.mask(), "logits": self.logits.detach().cpu()}
        write_file(folder / STATIC_FILE, save(tensors))


def build_source(recipe: Recipe, handle: Handle) -> RouteModel:
    """The source that a recipe asks for; a static mask aims at the middle of the intervals' mean."""
    if recipe.routes.source == "head_router":
        return HeadRouters(handle)
    middles = [(i.low + i.high) / 2 for i in recipe.intervals.values()]
    return StaticRoutes(handle, sum(middles) / len(middles))
