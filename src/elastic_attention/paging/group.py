"""What the layers of one model share: who still keeps dense keys, and scratch memory of the decode kernel."""

from collections import deque
from typing import Any, Protocol

from torch import Tensor

from .verbs import verbs_for

_MOST_WAITING = 2


class Settling(Protocol):
    """A store that keeps dense keys until `settle` moves them into pages."""

    def settle(self) -> None:
        """Move them now; may wait for the device."""
        ...


class LayerGroup:
    """Bounds the memory of a prefill, and owns what one layer at a time uses.

    During a prefill the host does not know the routes that the device decides, so a layer keeps its dense keys until
    they have arrived. When a third layer joins the line, the first must settle. Its routes were decided two layers
    ago, so while the host waits for them the device still has two layers of work in its queue and never runs dry. At
    most three layers hold dense keys at the same time: the two in line and the one that is being computed.
    """

    def __init__(self) -> None:
        self._waiting: deque[Settling] = deque()
        self._workspaces: dict[tuple[Any, ...], Any] = {}

    def join(self, store: Settling) -> None:
        """Line up; the store that is two layers ahead settles."""
        if store not in self._waiting:
            self._waiting.append(store)
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().settle()

    def leave(self, store: Settling) -> None:
        """Called by a store that settles."""
        if store in self._waiting:
            self._waiting.remove(store)

    def workspace(self, q: Tensor, num_kv_heads: int, page_size: int) -> Any:
        """Scratch memory of the decode kernel for queries like q (B, H, 1, D); the same tensors at every call."""
        key = (q.device, q.dtype, q.shape, num_kv_heads, page_size)
        if key not in self._workspaces:
            self._workspaces[key] = verbs_for(q.device).make_workspace(q, num_kv_heads, page_size)
        return self._workspaces[key]
