"""Routes of the requests an engine holds, and what each of its steps has to do with them.

Routes live in one tensor on the device, a slot a running request. A preempted request gives its slot back and keeps its
routes; it is computed again exactly as before: prompt tokens by the policy, generated ones by its routes.

Shape letters: R requests of a step, L layers, G KV heads (of this rank).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import ElasticConfig
from ..types import stage
from .policy import DENSE, NEVER, RoutePlan, ServingConfig, plan_routes
from .requests import read_route_request
from .virtual import Span


@dataclass(slots=True)
class RoutedRequest:
    """One request of the engine.

    Attributes:
        slot: row of the table of routes, None while it is preempted.
        is_decided: its routes are in the table.
        parked: (L, G) its routes while it is preempted.
    """

    prompt_tokens: int
    plan: RoutePlan
    budget: float
    slot: int | None = None
    is_decided: bool = False
    parked: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """What the layers of one forward do.

    Attributes:
        names: of the requests, row by row.
        slots: their rows of the table of routes.
        deciding: (row, request) whose routes are decided in this step.
        has_sparse: some query follows routes.
        is_settled: no query follows a route that this very step decides.
        is_decoding: every request has one new token.
        spans: what each request of the step has to do.
    """

    names: tuple[str, ...]
    slots: tuple[int, ...]
    deciding: tuple[tuple[int, RoutedRequest], ...]
    has_sparse: bool
    is_settled: bool
    is_decoding: bool
    spans: tuple[Span, ...]


class RouteBooks:
    """Books of the requests of one worker.

    Attributes:
        routes: (slots, L, G) bool on the device, True = sparse.
        requests: by id.
        moves: how often a request came or lost its place; between two of them blocks are only added.
    """

    def __init__(
        self,
        config: ElasticConfig,
        serving: ServingConfig,
        *,
        num_slots: int,
        device: torch.device,
        heads: slice = slice(None),
    ) -> None:
        """`heads`: the KV heads of this rank."""
        self.config, self.serving, self.heads, self.device = config, serving, heads, device
        base = config.base_model
        num_heads = len(range(base.num_kv_heads)[heads])
        self.routes = torch.zeros(num_slots, base.num_layers, num_heads, dtype=torch.bool, device=device)
        self.requests: dict[str, RoutedRequest] = {}
        self._free = list(range(num_slots))[::-1]
        self._progress: dict[str, tuple[int, int]] = {}
        self._decided: list[str] = []
        self._late: list[Callable[[], None]] = []
        self.moves = 0

    # Requests come and go -----------------------------------------------------------------------------------------

    def begin_step(
        self,
        *,
        new: Iterable[tuple[str, int, Mapping[str, Any] | None]],
        finished: Iterable[str],
        preempted: Iterable[str],
        progress: Mapping[str, tuple[int, int]],
    ) -> None:
        """An engine step begins.

        Args:
            new: id, prompt tokens and options of requests that join; one that was preempted goes on.
            finished, preempted: ids; they hold no blocks any more.
            progress: id -> (tokens computed before, tokens of this step) of all requests in it.
        """
        finished, preempted, new = list(finished), list(preempted), list(new)
        self.moves += bool(finished or preempted or new)
        for name in finished:
            self._forget(name)
        for name in preempted:
            self._park(name)
        for name, prompt_tokens, options in new:
            if name not in self.requests:
                self._admit(name, prompt_tokens, options)
        for name in progress:
            self._seat(self.requests[name])
        self._progress = dict(progress)

    def end_step(self) -> None:
        """The step is over; forwards outside of one (profiling, warm-up) are dense."""
        self._progress = {}
        late, self._late = self._late, []
        for act in late:
            act()

    def do_late(self, act: Callable[[], None]) -> None:
        """Do something at the end of the step under way."""
        self._late.append(act)

    def _admit(self, name: str, prompt_tokens: int, options: Mapping[str, Any] | None) -> None:
        asked = read_route_request(options, self.config, budget=self.serving.budget)
        plan = plan_routes(asked, self.serving, self.config, prompt_tokens)
        request = RoutedRequest(prompt_tokens=prompt_tokens, plan=plan, budget=asked.budget)
        self.requests[name] = request
        if asked.routes is not None and plan.sparse_from < NEVER:
            self.give_routes(name, asked.routes[:, self.heads])

    def needs_probe(self, name: str) -> bool:
        """Must its routes be there before its first token, and are not?"""
        request = self.requests[name]
        return request.plan.sparse_from == 0 and not request.is_decided

    def give_routes(self, name: str, routes: Tensor) -> None:
        """Note routes (L, G of this rank) that do not come from the prompt's own forward."""
        request = self.requests[name]
        request.parked, request.is_decided = routes.to(self.device), True
        self._decided.append(name)
        if request.slot is not None:
            self.routes[request.slot], request.parked = request.parked, None

    def _seat(self, request: RoutedRequest) -> None:
        if request.slot is not None:
            return
        request.slot = self._free.pop()
        if request.parked is None:
            self.routes[request.slot] = False
        else:
            self.routes[request.slot], request.parked = request.parked, None

    def _park(self, name: str) -> None:
        request = self.requests.get(name)
        if request is not None and request.slot is not None:
            if request.is_decided:
                request.parked = self.routes[request.slot].clone()
            self._free.append(request.slot)
            request.slot = None

    def _forget(self, name: str) -> None:
        request = self.requests.pop(name, None)
        if request is not None and request.slot is not None:
            self._free.append(request.slot)

    @property
    def num_seated(self) -> int:
        """Slots in use."""
        return len(self.routes) - len(self._free)

    # Steps --------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Does the forward under way belong to requests?"""
        return bool(self._progress)

    def plan_step(self, names: Sequence[str]) -> StepPlan:
        """The plan of a forward over these requests, in this order; those that decide are decided from then on."""
        deciding, spans, slots, has_sparse, is_settled = [], [], [], False, True
        for row, name in enumerate(names):
            request, (before, num_new) = self.requests[name], self._progress[name]
            end = before + num_new
            if not request.is_decided and request.plan.decide_at is not None and end >= request.plan.decide_at:
                deciding.append((row, request))
                self._decided.append(name)
                request.is_decided = True
                is_settled = is_settled and end <= request.plan.sparse_from
            sparse_from = request.plan.sparse_from if request.is_decided else NEVER
            spans.append(Span(num_new=num_new, num_tokens=end, sparse_from=sparse_from))
            has_sparse = has_sparse or end > sparse_from
            assert request.slot is not None
            slots.append(request.slot)
        return StepPlan(
            names=tuple(names),
            slots=tuple(slots),
            deciding=tuple(deciding),
            has_sparse=has_sparse,
            is_settled=is_settled,
            is_decoding=all(span.num_new == 1 for span in spans),
            spans=tuple(spans),
        )

    def note_counts(self, num_sparse: Mapping[str, int]) -> None:
        """Requests that were decided to have no sparse head are dense from now on, and cost what a dense one costs.

        Args:
            num_sparse: sparse (layer, KV head) pairs of all ranks, by request.
        """
        for name, number in num_sparse.items():
            if not number and name in self.requests:
                self.requests[name].plan = DENSE

    def take_decided(self) -> tuple[list[str], Tensor]:
        """Requests that were decided since the last call, and their sparse (layer, KV head) pairs, (n,) int32."""
        slots = {name: self.requests[name].slot for name in self._decided if name in self.requests}
        seated = {name: slot for name, slot in slots.items() if slot is not None}
        self._decided = []
        if not seated:
            return [], torch.zeros(0, dtype=torch.int32)
        chosen = stage(torch.tensor(list(seated.values()), dtype=torch.int64), self.device)
        return list(seated), self.routes[chosen].sum((1, 2), dtype=torch.int32)
