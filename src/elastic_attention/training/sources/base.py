"""What the trainer asks of a source of routes."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ...router import RouteSampler

if TYPE_CHECKING:
    from ...models.handle import Handle
    from ...models.routing import RouteSource
    from ..recipe import Recipe


class RouteModel(ABC):
    """A trainable source of routes.

    Attributes:
        granularity: of the configuration that the model is attached with; says what `pooled` holds.
        has_decay: weight decay acts on its matrices.
        loss, constraint: what it is trained with unless the recipe's [objective] says otherwise.
    """

    granularity: ClassVar[str] = "head"
    has_decay: ClassVar[bool] = True
    loss: ClassVar[str] = "lm"
    constraint: ClassVar[str] = "interval"

    @abstractmethod
    def __init__(self, recipe: "Recipe", handle: "Handle") -> None: ...

    @abstractmethod
    def parameters_to_train(self) -> list[nn.Parameter]:
        """The parameters, in a fixed order."""

    @abstractmethod
    def sample(self, index: int, pooled: Tensor, sampler: RouteSampler) -> Tensor:
        """Float routes (B, G), or (B, 1) for all heads, of layer `index` with a gradient."""

    @abstractmethod
    def inference(self) -> "RouteSource | Tensor":
        """What decides at inference: a function for `Handle.routed_by`, or a mask (L, G) for `Handle.set_routes`."""

    def after_step(self) -> None:  # noqa: B027 - most sources have nothing to do
        """Bring parameters back into their range; called after every optimiser step."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore `state()`."""

    @abstractmethod
    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write what inference needs."""
