"""A method of a comparison, and what is known of a method before a model is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...config import ElasticConfig

if TYPE_CHECKING:
    from ...models.handle import Handle

ChooseRoutes = Callable[[Sequence[int]], None | str | Tensor]
"""Sample ids of a batch -> what `Handle.set_routes` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of a comparison.

    Attributes:
        name: of `METHODS`.
        target: suite-mean MSR that a method was trained or drawn for, None where it does not apply.
        folder: adapter of a method with routers (None = the handle's own), or the folder of a static mask.
        decode: how generated rows read the cache, "sparse" or "full".
        note: tells apart runs that agree in everything else, such as "main" or "cache".
    """

    name: str
    target: float | None = None
    folder: str | None = None
    decode: str = "sparse"
    note: str = ""

    @property
    def label(self) -> str:
        """Name, target and note in one word, such as routed@0.800."""
        target = "" if self.target is None else f"@{self.target:.3f}"
        return self.name + target + (f"-{self.note}" if self.note else "")


def _let_routers_decide(method: Method, handle: Handle) -> ChooseRoutes | None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodKind:
    """What a name stands for: which pattern, who decides the routes, how it decodes.

    Attributes:
        summary: source and constants, half a sentence for tables and help.
        needs: what `Method` has to give besides the name: "", "adapter", "mask" or "target".
        decode: "full" where the method itself reads every key while decoding; None = as `Method.decode` says.
        pattern: what sparse heads read; None = what adapter or mask were trained with, else the default of the model.
        fits: whether an adapter is one of this method.
        choose: routes of a batch; None as its result lets the routers decide.
    """

    summary: str
    needs: str = ""
    decode: str | None = None
    pattern: Any = None
    fits: Callable[[ElasticConfig], bool] = lambda config: True
    choose: Callable[[Method, Handle], ChooseRoutes | None] = _let_routers_decide


def choose_all(method: Method, handle: Handle) -> ChooseRoutes:
    """Every head is sparse."""
    return lambda ids: "sparse"
