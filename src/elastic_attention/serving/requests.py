"""What one request may say about its routes, in a form that every API can carry: a few flat keys.

`elastic_routes`: "auto" (the routers decide, the default), "off" or "full" (no sparse head), "sparse" (every routed
head), or one "0" or "1" (= sparse) per KV head, layer by layer. `elastic_budget`: a number, larger = sparser.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import ElasticConfig
from ..models.budget import check_budget

ROUTES, BUDGET = "elastic_routes", "elastic_budget"
PREFIX = "elastic_"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteRequest:
    """What a request asks for.

    Attributes:
        routes: (L, G) bool given routes, True = sparse; None = the routers decide.
        budget: added to every sparse logit.
    """

    routes: Tensor | None
    budget: float

    @property
    def is_dense(self) -> bool:
        """Is every head full?"""
        return self.routes is not None and not bool(self.routes.any())


def read_route_request(
    options: Mapping[str, Any] | None, config: ElasticConfig, *, budget: float = 0.0
) -> RouteRequest:
    """Read the keys of a request that begin with `elastic_`; all others are none of our business.

    Args:
        budget: where the request names none.

    Raises:
        ValueError: an unknown key, or a value that does not fit the model; names the remedy.
    """
    given = {key: value for key, value in (options or {}).items() if key.startswith(PREFIX)}
    if unknown := sorted(set(given) - {ROUTES, BUDGET}):
        raise ValueError(f"{', '.join(unknown)} is unknown; use {ROUTES} and {BUDGET}.")
    number = check_budget(given.get(BUDGET, budget), f"{BUDGET}=")
    return RouteRequest(routes=_read_routes(given.get(ROUTES, "auto"), config), budget=number)


def _read_routes(value: Any, config: ElasticConfig) -> Tensor | None:
    base = config.base_model
    shape = (base.num_layers, base.num_kv_heads)
    is_routed = torch.zeros(base.num_layers, 1, dtype=torch.bool)
    is_routed[list(config.routed_layers)] = True
    if value == "auto":
        return None
    if value in ("off", "full"):
        return torch.zeros(shape, dtype=torch.bool)
    if value == "sparse":
        return torch.ones(shape, dtype=torch.bool) & is_routed
    if not isinstance(value, str) or set(value) - {"0", "1"} or len(value) != shape[0] * shape[1]:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}… ({len(repr(value))} characters)"
        raise ValueError(
            f"{ROUTES}={shown} is unknown; use 'auto', 'off', 'sparse', or {shape[0]} x {shape[1]} digits 0 (full) and "
            "1 (sparse), layer by layer."
        )
    routes = torch.tensor([digit == "1" for digit in value]).view(shape)
    if config.granularity == "layer" and bool((routes != routes[:, :1]).any()):
        raise ValueError(
            f"{ROUTES}: these routers decide once a layer, so that its {shape[1]} digits must be the same."
        )
    return routes & is_routed
