"""The policy "probe": a short dense pass over the first and last tokens of a prompt, before anything else of it.

Shape letters: m probed tokens, H query heads, G KV heads, D head dim, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..books import RouteBooks
from ..rotation import boundary_positions
from .step import LayerRouting, find_routing


class Probe:
    """Stands in for the attention metadata of a layer: nothing is cached, nothing but routes comes out.

    Attributes:
        routes: (L, G) bool, filled layer by layer.
    """

    def __init__(self, books: RouteBooks, num_tokens: int, budget: float) -> None:
        router = books.config.router
        self.positions = boundary_positions(num_tokens, router.pooled_tokens)
        self.routes = torch.zeros_like(books.routes[0])
        twice = boundary_positions(num_tokens, router.pooled_tokens, count_overlap_twice=router.count_overlap_twice)
        self._weights = torch.tensor([twice.count(p) / len(twice) for p in self.positions], device=books.device)
        self._places = torch.tensor(self.positions, device=books.device)
        self._budget = torch.tensor([budget], device=books.device)

    def attend(self, routing: LayerRouting | None, scale: float, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention (m, H, D) over the probed tokens alone; notes the layer's routes."""
        if routing is not None:
            states = key if routing.queries is None else query.mean(1, keepdim=True)
            chosen = routing.decide(states[None], self._places[None], self._weights[None], self._budget)
            self.routes[routing.index] = chosen[0]
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        result = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return result[0].transpose(0, 1)


def probe_prompt(vllm_config: Any, runner: Any, books: RouteBooks, prompt: Sequence[int], budget: float) -> Tensor:
    """Routes (L, G of this rank) of a prompt from its first and last tokens."""
    from vllm.forward_context import set_forward_context

    probe = Probe(books, len(prompt), budget)
    layers = vllm_config.compilation_config.static_forward_context
    positions = torch.tensor(probe.positions, device=books.device)
    tokens = torch.tensor([prompt[p] for p in probe.positions], dtype=torch.int32, device=books.device)
    metadata = {name: probe for name, layer in layers.items() if find_routing(layer) is not None}
    with (
        torch.inference_mode(),
        set_forward_context(metadata, vllm_config, num_tokens=len(tokens), slot_mapping={}),
    ):
        runner.get_model()(input_ids=tokens, positions=positions)
    return probe.routes
