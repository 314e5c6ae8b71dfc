"""The Attention Router: pooled keys in, one decision per KV head out. It sees neither queries nor values."""

from .attention_router import AttentionRouter, RouterStack
from .pooling import BoundaryPool, select_boundary
from .sampling import RouteNoise, RouteSampler

__all__ = ["AttentionRouter", "BoundaryPool", "RouteNoise", "RouteSampler", "RouterStack", "select_boundary"]
