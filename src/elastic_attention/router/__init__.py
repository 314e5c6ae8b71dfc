"""Routers: pooled keys in, one decision per KV head out; or pooled queries, one decision per layer. No values."""

from .attention_router import AttentionRouter
from .layer_router import LayerRouter, average_heads
from .pooling import BoundaryPool, count_ends, select_boundary, select_ends
from .sampling import RouteNoise, RouteSampler
from .stack import RouterStack

__all__ = [
    "AttentionRouter",
    "BoundaryPool",
    "LayerRouter",
    "RouteNoise",
    "RouteSampler",
    "RouterStack",
    "average_heads",
    "count_ends",
    "select_boundary",
    "select_ends",
]
