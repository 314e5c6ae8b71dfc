"""Books of the last forward or generate: how much each row skipped, and what its cache costs."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..patterns import TrianglePattern
from ..sparsity import count_causal_pairs, count_read_pairs, effective_sparsity_ratio
from ..types import HeadRoutes, Pattern
from .cache_layer import ElasticLayer
from .routing import LayerStep
from .tokens import Tokens


@dataclass(slots=True)
class _Row:
    """Sums of one row of the batch, over layers and KV heads."""

    prompt_tokens: int = 0
    causal_pairs: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    read_pairs: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})


class RouteReport:
    """Collects one `LayerStep` per layer and forward; `summarize` turns them into the handle's report."""

    def __init__(self, pattern: Pattern, num_layers: int, *, keeps_all: bool) -> None:
        self.pattern, self.num_layers, self.keeps_all = pattern, num_layers, keeps_all
        self.rows: list[_Row] = []
        self.steps: dict[int, LayerStep] = {}  # of the forward under way
        self._open: list[dict[int, LayerStep]] = []  # forwards that ended, not yet in the books
        # Of the forward that went into the books last. Never its layers: a report must not keep a cache alive.
        self._after: dict[int, HeadRoutes] = {}
        self._is_decided: list[bool] = []
        self._bytes: list[dict[str, int]] = []
        self._element_bytes = 0

    def add(self, index: int, step: LayerStep) -> None:
        """Note the step of layer `index` in the forward under way."""
        self.steps[index] = step

    def add_decoded(self, layers: dict[int, ElasticLayer], num_tokens: int, element_bytes: int) -> None:
        """Note and close forwards that a captured graph ran: by layer index, `num_tokens` tokens a row."""
        for index, layer in layers.items():
            tokens = Tokens.decoded([n - num_tokens for n in layer.store.lengths], num_tokens)
            routes = layer.store.routes
            step = LayerStep(tokens=tokens, layer=layer, now=routes, after=routes, is_decided=layer.is_decided)
            self.add(index, step)
        self.close_forward(element_bytes)

    def close_forward(self, element_bytes: int) -> None:
        """The forward ended; `element_bytes` is the size of K and V, 2 * D * itemsize.

        Its books are done at once where the host knows the routes, otherwise as soon as it does.
        """
        if self.steps:
            self._open.append(self.steps)
            self._element_bytes, self.steps = element_bytes, {}
        while self._open and all(step.now.has_arrived for step in self._open[0].values()):
            self._close(self._open.pop(0))

    def _close(self, steps: dict[int, LayerStep]) -> None:
        one = next(iter(steps.values()))
        self._after = {index: step.after for index, step in steps.items()}
        self._is_decided = list(one.is_decided)
        tokens, has_cache = one.tokens, one.layer is not None
        batch = len(tokens.counts)
        if len(self.rows) != batch or not has_cache:  # without a cache every forward starts over
            self.rows = [_Row() for _ in range(batch)]
        # Pairs are counted for all layers at once: a step of many rows must cost little time of the host.
        routes = [step.now.host() for step in steps.values()]
        num_heads = sum(values.shape[1] for values in routes)
        sparse = [sum(counts) for counts in zip(*(values.sum(1).tolist() for values in routes), strict=True)]
        for b, row in enumerate(self.rows):
            start = tokens.before[b]
            middle, stop = start + tokens.prompt_counts[b], start + tokens.counts[b]
            row.prompt_tokens += tokens.prompt_counts[b]
            for phase, first, last in (("prefill", start, middle), ("decode", middle, stop)):
                num_sparse = 0 if phase == "decode" and self.keeps_all else sparse[b]
                row.causal_pairs[phase] += num_heads * count_causal_pairs(first, last)
                row.read_pairs[phase] += count_read_pairs(
                    self.pattern, first, last, num_heads=num_heads, num_sparse=num_sparse
                )
            if start == 0 or self.keeps_all:  # otherwise the last queries find what streaming has kept
                row.read_pairs["prefill"] += sparse[b] * self._count_last_rows(start, middle)
        self._bytes = self._count_bytes(steps, batch)

    def _count_last_rows(self, start: int, stop: int) -> int:
        """Pairs that a triangle head reads beyond the streaming rule, for a prompt that ends at `stop`."""
        if not isinstance(self.pattern, TrianglePattern):
            return 0
        return self.pattern.count_pairs(start, stop, stop) - self.pattern.count_pairs(start, stop)

    def _count_bytes(self, steps: dict[int, LayerStep], batch: int) -> list[dict[str, int]]:
        totals = [{"kv_bytes": 0, "kv_bytes_dense": 0, "kv_bytes_allocated": 0} for _ in range(batch)]
        for step in steps.values():
            layer: ElasticLayer | None = step.layer
            if layer is None:
                continue
            routes, allocated = layer.store.routes.host(), layer.store.count_allocated_bytes()
            num_heads, sparse = routes.shape[1], routes.sum(1).tolist()
            for b, row in enumerate(totals):
                n, num_sparse = layer.store.lengths[b], 0 if self.keeps_all else sparse[b]
                held = (num_heads - num_sparse) * n + num_sparse * self.pattern.count_held(n)
                row["kv_bytes"] += held * self._element_bytes
                row["kv_bytes_dense"] += num_heads * n * self._element_bytes
                row["kv_bytes_allocated"] += allocated[b]
        return totals

    def summarize(self) -> dict[str, Any]:
        """The dictionary that `Handle.report` documents; waits for routes that are still under way."""
        while self._open:
            self._close(self._open.pop(0))
        routes = self._stack_routes()
        num_heads = len(self._after) * (routes.shape[2] if routes.ndim == 3 else 0)
        rows = self.rows
        return {
            "prompt_tokens": [row.prompt_tokens for row in rows],
            "routed": list(self._is_decided),
            "msr": [int(routes[b].sum()) / num_heads if num_heads else 0.0 for b in range(len(rows))],
            "esr_prefill": [effective_sparsity_ratio(r.read_pairs["prefill"], r.causal_pairs["prefill"]) for r in rows],
            "esr_decode": [effective_sparsity_ratio(r.read_pairs["decode"], r.causal_pairs["decode"]) for r in rows],
            **{name: [b[name] for b in self._bytes] for name in ("kv_bytes", "kv_bytes_dense", "kv_bytes_allocated")},
            "kv_bytes_read": [r.read_pairs["decode"] * self._element_bytes for r in rows],
            "routes": routes,
        }

    def _stack_routes(self) -> Tensor:
        """Routes after the last forward, (B, L, G) bool; layers that are not routed are False."""
        if not self._after:
            return torch.zeros(0, self.num_layers, 0, dtype=torch.bool)
        after = {index: routes.host() for index, routes in self._after.items()}
        batch, heads = next(iter(after.values())).shape
        routes = torch.zeros(batch, self.num_layers, heads, dtype=torch.bool)
        for index, values in after.items():
            routes[:, index] = values
        return routes
