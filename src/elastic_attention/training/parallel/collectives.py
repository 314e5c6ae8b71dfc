"""Exchanges between processes that carry gradients.

Shape letters: P processes of the group, n tokens of this process, N tokens of all, h heads of one process, D head dim.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ranks import naming_lost_ranks

Move = Callable[[Tensor, list[int], dist.ProcessGroup], Tensor]


def spread_heads(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """All heads of my tokens by receiver, (P, n, h, D), become my heads of all tokens, (N, h, D).

    Args:
        x: contiguous or not; n = counts[rank].
        counts: tokens of each process.
    """
    return _Exchange.apply(x, counts, group, _to_heads, _to_tokens)


def gather_heads(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """The way back: my heads of all tokens, (N, h, D), become all heads of my tokens by sender, (P, n, h, D)."""
    return _Exchange.apply(x, counts, group, _to_tokens, _to_heads)


def sum_copies(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the processes, on each of them. Its gradient is the sum of the gradients, for each copy is used."""
    return _Sum.apply(x, group)


class _Exchange(torch.autograd.Function):
    """One way for the values, the other for their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: dist.ProcessGroup, there: Move, back: Move) -> Tensor:
        ctx.counts, ctx.group, ctx.back = counts, group, back
        return there(x, counts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.back(grads[0], ctx.counts, ctx.group), None, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


def _to_heads(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    size, mine, *head = x.shape
    received = x.new_empty(sum(counts), *head)
    sent = x.contiguous().flatten(0, 1)
    with naming_lost_ranks():
        dist.all_to_all_single(received, sent, counts, [mine] * size, group=group)
    return received


def _to_tokens(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    mine, size, head = counts[dist.get_rank(group)], len(counts), x.shape[1:]
    received = x.new_empty(size * mine, *head)
    sent = x.contiguous()
    with naming_lost_ranks():
        dist.all_to_all_single(received, sent, [mine] * size, counts, group=group)
    return received.view(size, mine, *head)


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    with naming_lost_ranks():
        dist.all_reduce(total, group=group)
    return total
