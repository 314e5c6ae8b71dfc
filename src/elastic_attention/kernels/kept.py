"""Results of kernels that a layer which is computed again takes from memory.

A layer that keeps its input only runs twice (activation checkpointing). What its attention cost the first time need
not be paid again: the results are a small part of what the layer would have to keep.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from torch import Tensor

_recorded: ContextVar[deque[tuple[Tensor, ...]] | None] = ContextVar("recorded", default=None)
_replayed: ContextVar[deque[tuple[Tensor, ...]] | None] = ContextVar("replayed", default=None)


def compute_once(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `compute` gives; where a layer runs again inside `keep_results`, what it gave the first time."""
    if waiting := _replayed.get():
        return waiting.popleft()
    results, kept = compute(), _recorded.get()
    if kept is not None:
        kept.append(tuple(x.detach() for x in results))  # others than the ones that autograd marks as its own
    return results


def keep_results() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the first and for the second run of a layer, as `torch.utils.checkpoint` asks for (`context_fn`)."""
    kept: deque[tuple[Tensor, ...]] = deque()
    return _hold(_recorded, kept), _hold(_replayed, kept)


@contextmanager
def _hold(variable: ContextVar[deque[tuple[Tensor, ...]] | None], kept: deque[tuple[Tensor, ...]]) -> Iterator[None]:
    token = variable.set(kept)
    try:
        yield
    finally:
        variable.reset(token)
