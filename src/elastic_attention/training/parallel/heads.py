"""Which heads of a layer each process computes, where several share a pack.

A full head costs many times what a sparse one does, and all wait for the process that has the most of them. So heads
are dealt out anew in each layer, by what their routes cost. Nothing here is read by the host.

Shape letters: P processes, S sequences, G KV heads, H query heads, n tokens, D head dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOrder:
    """KV heads by the process that computes them; None = as they are.

    Attributes:
        order: (G,) int64, the KV heads of the first process, then of the second, ...
    """

    order: Tensor | None

    def sort(self, x: Tensor) -> Tensor:
        """Heads of x (n, H or G, D) by process."""
        return x if self.order is None else _Reorder.apply(x, *self._places(x.shape[1]))

    def restore(self, x: Tensor) -> Tensor:
        """Heads of x (n, H or G, D) by process, as they were."""
        return x if self.order is None else _Reorder.apply(x, *reversed(self._places(x.shape[1])))

    def _places(self, num_heads: int) -> tuple[Tensor, Tensor]:
        assert self.order is not None
        group = num_heads // len(self.order)
        places = (self.order[:, None] * group + torch.arange(group, device=self.order.device)).flatten()
        return places, places.argsort()


def deal_heads(routes: Tensor, lengths: Tensor, size: int) -> HeadOrder:
    """Deal the KV heads to `size` processes by cost, in turns: the costliest to the first, then the other way round.

    Args:
        routes: (S, G), 1 = sparse, the same on every process.
        lengths: (S,), tokens of each sequence, on the same device.
        size: P.
    """
    if routes.shape[1] <= size:
        return HeadOrder(order=None)
    cost = ((1 - routes.detach().float()) * lengths[:, None].float() ** 2).sum(0)
    turns = cost.argsort(descending=True, stable=True).unflatten(0, (-1, size))
    turns[1::2] = turns[1::2].flip(1)
    return HeadOrder(order=turns.T.flatten())


class _Reorder(torch.autograd.Function):
    """x at `places` of its second dimension; `back` undoes it. Indexing has a gradient of its own, but a slow one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(1, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(1, ctx.saved_tensors[0]), None, None
