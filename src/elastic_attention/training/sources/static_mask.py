"""One number per (layer, KV head), the same for all inputs; inference keeps exactly the wanted share sparse."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...models.checkpoint import save_static_routes
from ...models.static_masks import mark_sparsest
from ...settings import to_dict
from .base import RouteModel

if TYPE_CHECKING:
    from ...models.handle import Handle
    from ...models.routing import RouteSource
    from ..recipe import Recipe


class StaticMask(RouteModel):
    """A learned mask; subclasses say where its numbers start, how routes are drawn from them and how they rank heads.

    Attributes:
        name: of the numbers, in checkpoints and exported files.
        values: (L_routed, G) float32, what learns.
    """

    has_decay = False
    name: ClassVar[str]

    def __init__(self, recipe: "Recipe", handle: "Handle") -> None:
        self.config, self.msr = handle.config, recipe.target_msr
        self.layers = handle.routed_layers
        start = self.start(len(self.layers), handle.config.base_model.num_kv_heads, recipe.seed)
        self.values = nn.Parameter(start.to(handle.model.device))

    @abstractmethod
    def start(self, num_layers: int, num_heads: int, seed: int) -> Tensor:
        """The numbers before training, (L_routed, G) float32."""

    @abstractmethod
    def rank(self) -> Tensor:
        """(L_routed, G); the heads with the largest entries become sparse first."""

    def of_layer(self, index: int, batch: int) -> Tensor:
        """The numbers of layer `index` for every sequence, (B, G)."""
        return self.values[self.layers.index(index)].expand(batch, -1)

    def mask(self) -> Tensor:
        """(L, G) bool on the host, True = sparse: the round(msr * heads) heads that rank first."""
        mask = torch.zeros(self.config.base_model.num_layers, self.values.shape[1], dtype=torch.bool)
        mask[list(self.layers)] = mark_sparsest(self.rank(), self.msr)
        return mask

    def parameters_to_train(self) -> list[nn.Parameter]:
        return [self.values]

    def inference(self) -> "RouteSource | Tensor":
        return self.mask()

    def state(self) -> dict[str, Tensor]:
        return {self.name: self.values.detach()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.values.copy_(state[self.name])

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        patterns = {name: to_dict(self.config)[name] for name in ("sparse_pattern", "full_pattern")}
        facts = facts | patterns
        save_static_routes(folder, self.mask(), self.state(), facts)
