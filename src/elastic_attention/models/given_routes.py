"""Routes that a user gives: checked, and brought into one form."""

import torch
from torch import Tensor

from ..config import ElasticConfig


def check_given(routes: str | Tensor, config: ElasticConfig) -> Tensor:
    """Routes as `Handle.set_routes` takes them -> (L, G) or (B, L, G) bool on the host, False in layers without routes.

    Raises:
        ValueError: another word, shape or dtype, or heads that differ under a layer adapter.
    """
    shape = (config.base_model.num_layers, config.base_model.num_kv_heads)
    if isinstance(routes, str):
        if routes not in ("full", "sparse"):
            raise ValueError(f"set_routes({routes!r}): use 'full', 'sparse', None or a bool tensor {shape}.")
        routes = torch.full(shape, routes == "sparse")
    if not isinstance(routes, Tensor) or routes.dtype != torch.bool or routes.ndim not in (2, 3):
        given = f"{routes.dtype} {tuple(routes.shape)}" if isinstance(routes, Tensor) else type(routes).__name__
        raise ValueError(f"set_routes needs a bool tensor (L, G) or (B, L, G) with (L, G) = {shape}, got {given}.")
    if tuple(routes.shape[-2:]) != shape or 0 in routes.shape:
        raise ValueError(f"set_routes got shape {tuple(routes.shape)}; (L, G) must be {shape}.")
    is_routed = torch.zeros(shape[0], 1, dtype=torch.bool)
    is_routed[list(config.routed_layers)] = True
    routes = routes.cpu() & is_routed
    if config.granularity == "layer" and bool((routes != routes[..., :1]).any()):
        layers = (routes != routes[..., :1]).any(-1).nonzero()[:, -1].unique().tolist()
        raise ValueError(
            f"set_routes got heads that differ within the layers {layers}, but these routers decide for whole layers; "
            "give every head of a layer the same route."
        )
    return routes
