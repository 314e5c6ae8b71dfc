"""A model as one method reads with it: attached, with the routes of each batch, and with books on what it read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..attention.reads import ReadObserver, observe_reads
from ..models.handle import Handle
from ..sparsity import count_causal_pairs, effective_sparsity_ratio
from .methods import ChooseRoutes, Method, attach_method, find_method


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A model that one method has made ready.

    Attributes:
        handle: attached to the model.
        is_dense: the base model answers, without routed heads.
        choose_routes: routes of a batch; None lets the routers decide.
        observers: the one of the batch that was read last.
    """

    handle: Handle
    is_dense: bool = False
    choose_routes: ChooseRoutes | None = None
    observers: list[ReadObserver] = field(default_factory=list)

    @contextlib.contextmanager
    def reading(self, sample_ids: Sequence[int]) -> Iterator[Any]:
        """Inside, the model that is yielded answers the samples of one batch as the method wants it."""
        with contextlib.ExitStack() as stack:
            if self.is_dense:
                stack.enter_context(self.handle.disabled())
            elif self.choose_routes is not None:
                self.handle.set_routes(self.choose_routes(sample_ids))
                stack.callback(self.handle.set_routes, None)
            self.observers[:] = [stack.enter_context(observe_reads())]
            yield self.handle.model

    def report(self, prompt_tokens: Sequence[int], new_tokens: Sequence[int]) -> dict[str, list[Any]]:
        """`BOOKS` of `Handle.report` and the routes as text, one entry a row; of the base model they are computed."""
        if not self.is_dense:
            report = self.handle.report()
            routes = [write_routes(rows, self.handle.routed_layers) for rows in report["routes"]]
            return {key: report[key] for key in BOOKS} | self._observe(prompt_tokens) | {"routes": routes}
        base, heads = self.handle.config.base_model, self._count_heads()
        # The last token is never fed back, so it has no keys.
        cached = [max(p + n - 1, p) for p, n in zip(prompt_tokens, new_tokens, strict=True)]
        size = [heads * 2 * base.head_dim * self.handle.model.dtype.itemsize * n for n in cached]
        zeros = [0.0] * len(size)
        books = dict(zip(BOOKS, (zeros, zeros, zeros, size, size), strict=True))
        return books | {"routes": [""] * len(size)}

    def _observe(self, prompt_tokens: Sequence[int]) -> dict[str, list[Any]]:
        """The prompts' ESR where the handle's books only know a bound, because heads chose from the data."""
        pairs = [pair for observer in self.observers for pair in observer.sum_pairs(len(prompt_tokens))]
        if not any(causal for _, causal in pairs):
            return {}
        totals = [self._count_heads() * count_causal_pairs(0, n) for n in prompt_tokens]
        # Layers that were not observed have full heads alone.
        return {
            "esr_prefill": [
                effective_sparsity_ratio(total - causal + read, total)
                for total, (read, causal) in zip(totals, pairs, strict=True)
            ]
        }

    def _count_heads(self) -> int:
        return len(self.handle.routed_layers) * self.handle.config.base_model.num_kv_heads


BOOKS = ("msr", "esr_prefill", "esr_decode", "kv_bytes", "kv_bytes_dense")


def write_routes(routes: Tensor, routed_layers: Sequence[int]) -> str:
    """(L, G) bool as a word a layer, a letter a KV head: 1 sparse, 0 full, - in layers that are not routed."""
    return " ".join(
        "".join(str(int(is_sparse)) for is_sparse in row) if layer in routed_layers else "-" * len(row)
        for layer, row in enumerate(routes.tolist())
    )


def read_routes(text: str) -> list[list[int | None]]:
    """The head map of a record from `write_routes`: L lists of G entries, 1 sparse, 0 full, None not routed."""
    return [[None if letter == "-" else int(letter) for letter in word] for word in text.split()]


@contextlib.contextmanager
def open_reader(
    method: Method, model: Any, *, routers: str | None = None, backend: str = "auto", budget: float = 0.0
) -> Iterator[Reader]:
    """`attach_method` for the time inside; afterwards the model is itself again. Arguments and errors are its own."""
    handle = attach_method(method, model, routers=routers, backend=backend, budget=budget)
    try:
        choose = find_method(method).choose(method, handle)
        yield Reader(handle=handle, is_dense=method.name == "dense", choose_routes=choose)
    finally:
        handle.detach()
