"""One forward of the engine: which routes it decides, and its queries as virtual sequences.

Shape letters: T tokens of the step, H query heads, G KV heads, p = H / G, D head dim, R requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...router.attention_router import AttentionRouter
from ...types import stage
from ..books import RouteBooks, RoutedRequest, StepPlan
from ..policy import streaming
from ..rotation import boundary_positions, decide_routes, undo_rotation
from ..virtual import gather_order, make_tables, virtual_starts
from . import layout

_ATTRIBUTE = "elastic_routing"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRouting:
    """What a routed attention layer of the engine carries.

    Attributes:
        index: of the layer.
        rotation: vLLM's rotary embedding of the layer.
        runner: the model runner, which knows the rows of a step.
    """

    index: int
    router: AttentionRouter
    rotation: Any
    books: RouteBooks
    runner: Any


def put_routing(layer: Any, routing: LayerRouting) -> None:
    """Put routing on an attention layer of vLLM."""
    object.__setattr__(layer, _ATTRIBUTE, routing)


def find_routing(layer: Any) -> LayerRouting | None:
    """The routing of an attention layer, None where it is not routed."""
    return getattr(layer, _ATTRIBUTE, None)


def open_step(builder: Any, common: Any) -> "RoutedStep | None":
    """The plan of the forward that `builder` builds metadata for; None outside of requests."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention import Attention

    layers = get_layers_from_vllm_config(builder.vllm_config, Attention, builder.layer_names)
    routing = next((found for layer in layers.values() if (found := find_routing(layer)) is not None), None)
    if routing is None or not routing.books.is_open:
        return None
    plan = routing.books.plan_step(layout.list_rows(routing.runner, common))
    if plan.pieces is None and not plan.deciding:
        return None
    return RoutedStep(builder, common, routing.books, plan)


class RoutedStep:
    """The plan of one forward, as its layers carry it out."""

    def __init__(self, builder: Any, common: Any, books: RouteBooks, plan: StepPlan) -> None:
        self.plan, self._builder, self._common, self._books = plan, builder, common, books
        self._pattern = streaming(books.config)
        self._page: int = builder.block_size
        self._pooled = _PooledTokens(books, [request for _, request in plan.deciding]) if plan.deciding else None
        if plan.pieces is not None:
            heads = books.routes.shape[2]
            self._order = stage(gather_order(plan.pieces, heads), books.device)
            self._starts_on_host = virtual_starts(plan.pieces, heads)
            self._starts = stage(self._starts_on_host, books.device)
            self._longest = int(plan.pieces.count.max())
            self._pieces = plan.pieces.to(books.device)

    def decide(self, routing: LayerRouting, read_keys: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Decide the routes of this layer for the requests whose prompts are far enough.

        Args:
            read_keys: (block table (R, W), positions (R, m)) -> rotated keys (R, m, G, D).
        """
        if self._pooled is None:
            return
        rows = stage([row for row, _ in self.plan.deciding], self._books.device)
        keys = read_keys(self._common.block_table_tensor[rows], self._pooled.positions)
        rotation = routing.rotation
        plain = undo_rotation(
            keys, rotation.cos_sin_cache[self._pooled.positions], is_interleaved=not rotation.is_neox_style
        )
        pooled = (plain * self._pooled.weights[..., None, None]).sum(1)
        routes = decide_routes(routing.router, pooled, self._pooled.budgets)
        self._books.routes[self.plan.slots[rows], routing.index] = routes

    def virtualize(self, routing: LayerRouting, query: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Any]:
        """This layer's queries (rows, p, D), cache and metadata as virtual sequences."""
        heads = self._books.routes.shape[2]
        num_tokens = self._common.num_actual_tokens
        routes = self._books.routes[self.plan.slots, routing.index]
        width = -(-int(self._common.max_seq_len) // self._page)
        table, lengths = make_tables(
            self._pieces, self._common.block_table_tensor[: len(routes), :width], routes, self._page, self._pattern
        )
        common = layout.replace_rows(
            self._common,
            starts=self._starts,
            starts_on_host=self._starts_on_host,
            lengths=lengths,
            table=table,
            longest=self._longest,
            num_tokens=len(self._order),
        )
        rows = query[:num_tokens].reshape(num_tokens * heads, -1, query.shape[-1])[self._order]
        return rows, layout.split_heads(cache), self._builder.build_virtual(common)

    def put_back(self, result: Tensor, output: Tensor) -> Tensor:
        """Write virtual rows (rows, p, D) to the tokens they belong to."""
        num_tokens = self._common.num_actual_tokens
        back = torch.empty_like(result)
        back[self._order] = result
        output[:num_tokens] = back.view(output[:num_tokens].shape)
        return output


class _PooledTokens:
    """Which tokens of the deciding requests are pooled. All rows are padded to the same number m.

    Attributes:
        positions: (R, m) int64; weights: (R, m) float32, they sum to 1; budgets: (R,) float32.
    """

    def __init__(self, books: RouteBooks, requests: list[RoutedRequest]) -> None:
        router = books.config.router
        chosen = [
            boundary_positions(
                request.plan.decide_at or 0, router.pooled_tokens, count_overlap_twice=router.count_overlap_twice
            )
            for request in requests
        ]
        width = max(map(len, chosen))
        positions = torch.zeros(len(chosen), width, dtype=torch.int64)
        weights = torch.zeros(len(chosen), width)
        for row, tokens in enumerate(chosen):
            positions[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, : len(tokens)] = 1 / len(tokens)
        self.positions, self.weights = stage(positions, books.device), stage(weights, books.device)
        self.budgets = stage(torch.tensor([request.budget for request in requests]), books.device)
