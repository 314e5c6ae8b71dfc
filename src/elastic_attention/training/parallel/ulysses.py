"""Ulysses sequence parallelism: each process holds a part of a pack's tokens, and in attention a part of the heads.

All but attention works token by token, so it needs no change. Around attention, tokens of all heads are exchanged for
heads of all tokens; there every process sees whole sequences, and kernels, patterns and routes work as ever. Which
heads are whose is dealt out in each layer by what their routes cost.

Shape letters: P processes, n tokens of this process, N tokens of the pack, S sequences, H query heads, G KV heads,
D head dim.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import RecipeError
from ...kernels.spans import pack_whole
from ...models.tokens import Tokens
from ...types import stage
from .collectives import gather_heads, spread_heads, sum_copies
from .heads import HeadOrder, deal_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceExchange:
    """The tokens of one pack, spread over a group of processes.

    Attributes:
        group: of the processes.
        rank: of this one in it.
        counts: tokens of each process, in the order of the pack.
        lengths: (S,), tokens of each sequence, on the device.
    """

    group: dist.ProcessGroup
    rank: int
    counts: list[int]
    lengths: Tensor

    @property
    def own(self) -> slice:
        """The places of my tokens in the pack."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    def take(self, hidden: Tensor, index: Tensor) -> Tensor:
        """Rows of the whole pack, on every process: hidden (1, n, width), index (S, m) -> (S, m, width)."""
        place = index - self.own.start
        is_mine = (place >= 0) & (place < hidden.shape[1])
        chosen = hidden[0, place.clamp(0, hidden.shape[1] - 1)]
        return sum_copies(torch.where(is_mine[..., None], chosen, 0), self.group)

    def deal(self, routes: Tensor) -> "SharedHeads":
        """The heads of a layer with these routes (S, G), dealt to the processes."""
        routes = stage(routes, self.lengths.device)
        return SharedHeads(exchange=self, all_routes=routes, order=deal_heads(routes, self.lengths, len(self.counts)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedHeads:
    """The heads of one layer, spread over the processes that share a pack.

    Attributes:
        exchange: the processes.
        all_routes: (S, G).
        order: whose heads are whose.
    """

    exchange: SequenceExchange
    all_routes: Tensor
    order: HeadOrder

    @property
    def routes(self) -> Tensor:
        """Routes of my KV heads, (S, g): g = G/P, at least 1."""
        size, num_kv_heads = len(self.exchange.counts), self.all_routes.shape[1]
        first = self.exchange.rank * num_kv_heads // size
        return self.order.sort(self.all_routes[..., None])[:, first : first + max(1, num_kv_heads // size), 0]

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (1, H, n, D), k and v (1, G, n, D) of my tokens -> my heads of all tokens, (1, H/P, N, D) and (1, g, N, D).

        A KV head goes to every process that has query heads of it.
        """
        size = len(self.exchange.counts)
        copies = max(1, size // k.shape[1])
        parts = [self.order.sort(x[0].transpose(0, 1)) for x in (q, k, v)]
        parts[1:] = [x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in parts[1:]]
        sent = torch.cat([x.unflatten(1, (size, -1)).transpose(0, 1) for x in parts], dim=2)
        mine = spread_heads(sent, self.exchange.counts, self.exchange.group)
        heads = [x.shape[1] // size for x in parts]
        q, k, v = (x.transpose(0, 1)[None] for x in mine.split(heads, dim=1))
        return q, k, v

    def to_tokens(self, out: Tensor) -> Tensor:
        """My heads of all tokens, (1, H/P, N, D), become all heads of my tokens, (1, H, n, D)."""
        mine = gather_heads(out[0].transpose(0, 1), self.exchange.counts, self.exchange.group)
        return self.order.restore(mine.transpose(0, 1).flatten(1, 2)).transpose(0, 1)[None]


def describe_pack(lengths: list[int], exchange: SequenceExchange) -> Tokens:
    """A pack of whole sequences of these lengths, as the layers of a process that holds a part of it see it."""
    return Tokens.packed(pack_whole(exchange.lengths, max(lengths)), lengths, exchange)


def cut_evenly(num_tokens: int, size: int) -> list[int]:
    """Tokens of each of `size` processes; they differ by one at most."""
    return [num_tokens // size + (rank < num_tokens % size) for rank in range(size)]


def check_heads(num_q_heads: int, num_kv_heads: int, size: int) -> None:
    """Can `size` processes share the heads?

    Raises:
        RecipeError: they cannot.
    """

    def fits(n: int) -> bool:
        return num_kv_heads % n == 0 or (n % num_kv_heads == 0 and num_q_heads % n == 0)

    if not fits(size):
        raise RecipeError(
            f"parallel.sequence={size} does not fit {num_kv_heads} KV heads and {num_q_heads} query heads; use one of "
            f"{[n for n in range(1, num_q_heads + 1) if fits(n)]}."
        )
