"""TriangleMix (arXiv 2507.21526): dense in the shallow half of the layers, triangles in the deeper one; dense decoding.

A triangle is a sink, a window of 512, and all keys for the last 128 queries of the prompt. The paper's sink of 8 tokens
is a block of 16 here, the smallest that the kernels know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...config import TriangleConfig
from .base import ChooseRoutes, Method, MethodKind

if TYPE_CHECKING:
    from ...models.handle import Handle


def _choose_deep_layers(method: Method, handle: Handle) -> ChooseRoutes:
    base = handle.config.base_model
    routes = torch.zeros(base.num_layers, base.num_kv_heads, dtype=torch.bool)
    routes[base.num_layers // 2 :] = True
    return lambda ids: routes


TRIANGLE_MIX = MethodKind(
    summary="TriangleMix: the deeper half of the layers reads sink, window of 512, and all for the last 128 queries",
    decode="full",
    pattern=TriangleConfig(num_sink_tokens=16, local_window=512, block_size=16, num_last_queries=128),
    choose=_choose_deep_layers,
)
