"""What learns, by the name a recipe gives it. A new source is one file here and one line in `SOURCES`."""

from typing import TYPE_CHECKING

from .alpha import BlendWeights
from .base import RouteModel
from .hard_concrete import HardConcrete
from .routers import HeadRouters, LayerRouters
from .static_logits import StaticLogits

if TYPE_CHECKING:
    from ...models.handle import Handle
    from ..recipe import Recipe

SOURCES: dict[str, type[RouteModel]] = {
    "head_router": HeadRouters,
    "layer_router": LayerRouters,
    "static": StaticLogits,
    "hard_concrete": HardConcrete,
    "alpha": BlendWeights,
}


def build_source(recipe: "Recipe", handle: "Handle") -> RouteModel:
    """The source that a recipe asks for."""
    return SOURCES[recipe.routes.source](recipe, handle)


__all__ = ["SOURCES", "RouteModel", "build_source"]
