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
from ..virtual import cut_pieces, gather_order, make_tables, virtual_starts
from . import layout
from .queries import QueryPages, average_ranks

StatesOf = Callable[[Tensor, Tensor], Tensor]
"""(block table (R, W), positions (R, m)) -> what a layer's router reads, rotated: keys (R, m, G, D) of its cache, or
mean queries (R, m, 1, D)."""

_ATTRIBUTE = "elastic_routing"
MOST_BYTES = 1 << 28
"""Tables of all layers are made at once up to this size, which spares every layer a dozen small kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRouting:
    """What a routed attention layer of the engine carries.

    Attributes:
        index: of the layer.
        rotation: vLLM's rotary embedding of the layer.
        runner: the model runner, which knows the rows of a step.
        queries: what a router reads that decides once a layer; None where it reads the keys of each KV head.
    """

    index: int
    router: AttentionRouter
    rotation: Any
    books: RouteBooks
    runner: Any
    queries: QueryPages | None

    def decide(self, states: Tensor, positions: Tensor, weights: Tensor, budgets: Tensor) -> Tensor:
        """Routes (R, G), or (R, 1) for all heads, True = sparse.

        Args:
            states: (R, m, G, D) or (R, m, 1, D), see `StatesOf`.
            positions: (R, m) int64; weights: (R, m) float32, they sum to 1; budgets: (R,) float32.
        """
        table = self.rotation.cos_sin_cache[positions]
        plain = undo_rotation(states, table, is_interleaved=not self.rotation.is_neox_style)
        pooled = (plain * weights[..., None, None]).sum(1)
        return decide_routes(self.router, pooled if self.queries is None else average_ranks(pooled), budgets)


def put_routing(layer: Any, routing: LayerRouting) -> None:
    """Put routing on an attention layer of vLLM."""
    object.__setattr__(layer, _ATTRIBUTE, routing)


def find_routing(layer: Any) -> LayerRouting | None:
    """The routing of an attention layer, None where it is not routed."""
    return getattr(layer, _ATTRIBUTE, None)


def find_first_routing(builder: Any) -> LayerRouting | None:
    """The routing of any routed layer that `builder` builds metadata for."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention import Attention

    layers = get_layers_from_vllm_config(builder.vllm_config, Attention, builder.layer_names)
    return next((found for layer in layers.values() if (found := find_routing(layer)) is not None), None)


def open_step(builder: Any, common: Any) -> "RoutedStep | None":
    """The plan of the forward that `builder` builds metadata for; None outside of requests."""
    routing: LayerRouting | None = builder.routing
    if routing is None or not routing.books.is_open:
        return None
    plan = routing.books.plan_step(layout.list_rows(routing.runner, common))
    if not plan.has_sparse and not plan.deciding:
        return None
    return RoutedStep(builder, common, routing.books, plan)


class RoutedStep:
    """The plan of one forward, as its layers carry it out."""

    def __init__(self, builder: Any, common: Any, books: RouteBooks, plan: StepPlan) -> None:
        self.plan, self._builder, self._common, self._books = plan, builder, common, books
        self._pattern = streaming(books.config)
        self._page: int = builder.block_size
        self._decision = Decision(books, plan, common.block_table_tensor) if plan.deciding else None
        self._tables: tuple[Tensor, Tensor] | None = None
        if plan.has_sparse:
            heads, pieces = books.routes.shape[2], cut_pieces(plan.spans, self._pattern.block_size)
            self._num_rows = heads * sum(span.num_new for span in plan.spans)
            # Rows of decoding stand in order already.
            self._order = None if plan.is_decoding else stage(gather_order(pieces, heads), books.device)
            self._starts_on_host = virtual_starts(pieces, heads)
            self._starts = stage(self._starts_on_host, books.device)
            self._longest = int(pieces.count.max())
            self._pieces, self._slots = pieces.to(books.device), stage(plan.slots, books.device)
            width = -(-int(common.max_seq_len) // self._page)
            self._blocks = common.block_table_tensor[: len(plan.slots), :width]
            bytes_of_all = 4 * books.routes.shape[1] * heads * len(pieces.count) * width
            if plan.is_settled and bytes_of_all <= MOST_BYTES:
                self._tables = self._make_tables(books.routes[self._slots].transpose(0, 1))

    def _make_tables(self, routes: Tensor) -> tuple[Tensor, Tensor]:
        return make_tables(self._pieces, self._blocks, routes, self._page, self._pattern)

    @property
    def is_virtual(self) -> bool:
        """Are its queries cut for virtual sequences?"""
        return self.plan.has_sparse

    def decide(self, routing: LayerRouting, read_states: StatesOf) -> None:
        """Decide the routes of this layer for the requests whose prompts are far enough."""
        if self._decision is not None:
            self._decision.decide(routing, read_states)

    def virtualize(self, routing: LayerRouting, query: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Any]:
        """This layer's queries (rows, p, D), cache and metadata as virtual sequences."""
        if self._tables is not None:
            table, lengths = (part[routing.index] for part in self._tables)
        else:
            table, lengths = self._make_tables(self._books.routes[self._slots, routing.index])
        common = layout.replace_rows(
            self._common,
            starts=self._starts,
            starts_on_host=self._starts_on_host,
            lengths=lengths,
            table=table,
            longest=self._longest,
            num_tokens=self._num_rows,
        )
        rows = query[: self._common.num_actual_tokens].reshape(self._num_rows, -1, query.shape[-1])
        rows = rows if self._order is None else rows[self._order]
        return rows, layout.split_heads(cache), self._builder.build_virtual(common)

    def make_room(self, rows: Tensor, output: Tensor) -> Tensor:
        """Where the kernel may write the result of these rows."""
        return self._view_rows(output) if self._order is None else torch.empty_like(rows)

    def put_back(self, result: Tensor, output: Tensor) -> Tensor:
        """Write virtual rows (rows, p, D) to the tokens they belong to, where they are not there already."""
        if self._order is not None:
            self._view_rows(output)[self._order] = result
        return output

    def _view_rows(self, output: Tensor) -> Tensor:
        """(T, H, D) or (T, H * D) as (token, KV head) rows (T * G, p, D), never a copy."""
        shape = (self._num_rows, -1, self._books.config.base_model.head_dim)
        return output[: self._common.num_actual_tokens].view(shape)


class Decision:
    """The requests of a step whose prompts are far enough for their routes."""

    def __init__(self, books: RouteBooks, plan: StepPlan, block_table: Tensor) -> None:
        """`block_table`: (R, W) pages of the requests of the step."""
        self._books = books
        self._pooled = _PooledTokens(books, [request for _, request in plan.deciding])
        rows = [row for row, _ in plan.deciding]
        self._pages = block_table[stage(rows, books.device)]
        self._slots = stage([plan.slots[row] for row in rows], books.device)

    def decide(self, routing: LayerRouting, read_states: StatesOf) -> None:
        """Write the routes of one layer to the books; what its router reads must be there."""
        pooled = self._pooled
        states = read_states(self._pages, pooled.positions)
        routes = routing.decide(states, pooled.positions, pooled.weights, pooled.budgets)
        self._books.routes[self._slots, routing.index] = routes


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
