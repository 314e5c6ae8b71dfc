"""Ragged key/value storage of one attention layer in pages, for GPUs: the verbs of `cache.ElasticCache`.

New tokens are staged as they come; `evict` says that nobody takes them back, and `settle` moves them into pages. Full
rows fill page after page. Sparse rows pin the sink in their first slots and use the slots behind it as a ring of the
local window, so a token that has left the window is overwritten and nothing is ever moved. Kernels find everything
through device memory (`pool`, `device_lengths`, `modes`), whose addresses only change when `moves` does.

The host counts tokens, but it does not wait for routes that the device decides: a layer settles when they have
arrived. `LayerGroup` says how that bounds memory.

Shape letters: B batch, T new tokens, S keys, H query heads, G KV heads, D head dim, R = B * G rows.
"""

import copy
import sys
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..patterns import StreamingPattern
from ..types import HeadRoutes, PackedRows, stage
from .books import RowBooks
from .group import LayerGroup
from .pool import PagePool
from .rows import gather_rows, lift_rows, put_rings
from .staged import StagedTokens
from .verbs import verbs_for


class PagedCache:
    """Keys and values of one layer.

    Args:
        pattern: decides what sparse rows keep.
        keeps_all: sparse rows keep everything too (decode="full").
        group: what the layers of a model share; None = this layer is alone.
        page_size: tokens of a page, a power of two; None = 128 if pages then end where the ring ends, else 64.

    Attributes:
        routes: (B, G) of the sequences.
        pool: the pages, None before the first token.
        device_lengths: (B,) int32, tokens of each sequence in the pool.
        modes: (B, G) int32, how the pool holds each row: FULL or STREAMING of `kernels.modes`.

    Raises:
        ValueError: `page_size` is no power of two.
    """

    def __init__(
        self,
        pattern: StreamingPattern,
        *,
        keeps_all: bool = False,
        group: LayerGroup | None = None,
        page_size: int | None = None,
    ) -> None:
        self.pattern, self.keeps_all, self.group = pattern, keeps_all, group or LayerGroup()
        self._books = RowBooks(pattern, 0, 0)
        self.page_size = page_size or (64 if self._books.ring_size % 128 else 128)
        if self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size={page_size} must be a power of two; leave it out or use 64 or 128.")
        self.routes = HeadRoutes(torch.empty(0, 0, dtype=torch.bool))
        self.pool: PagePool | None = None
        self.device_lengths = self.modes = torch.empty(0, dtype=torch.int32)
        self._are_routes_new = False  # rows are not held as `routes` says, yet
        self._room: list[int] = []  # tokens that a sequence can hold in the pages it has
        self._staged: list[StagedTokens] = []
        self._is_committed = False  # what is staged may settle
        self._state_moves = 0

    @property
    def num_kv_heads(self) -> int:
        """G, 0 before the first token."""
        return self._books.num_kv_heads

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each sequence."""
        return self._books.lengths

    @property
    def evicted(self) -> list[int]:
        """Tokens dropped from the sparse rows of each sequence; may wait, as `settle` does."""
        self.settle()
        return list(self._books.evicted)

    @property
    def moves(self) -> int:
        """Changes when a tensor that kernels read gets another address; captured CUDA graphs are stale then."""
        return self._state_moves + (self.pool.moves if self.pool else 0)

    def stored_lengths(self) -> list[int]:
        """Tokens that each row stores, R of them; may wait, as `settle` does."""
        self.settle()
        return self._books.stored_lengths()

    def count_stored(self) -> int:
        """Tokens stored, over all rows; may wait, as `settle` does."""
        return sum(self.stored_lengths())

    def count_allocated_bytes(self) -> list[int]:
        """Bytes of the pages and of what is staged, by sequence; pages without an owner count for all alike."""
        if self.pool is None:
            return []
        batch, pool = len(self.lengths), self.pool
        staged = sum(part.count_bytes() for part in self._staged) // batch
        pages = [pool.num_free // batch + (b < pool.num_free % batch) for b in range(batch)]
        for row, count in enumerate(pool.counts):
            pages[self._books.sequence(row)] += count
        return [n * pool.page_bytes + staged for n in pages]

    def dense_view(self) -> tuple[Tensor, Tensor] | None:
        """(B, G, S, D) keys and values of a first append without padding while it is staged, else None.

        Pages are no dense tensors; `attend_token` reads them where they are. Waits until the host knows the routes.
        """
        if self.pool is None or any(self._wanted_rings()) or len(self._staged) != 1:
            return None
        staged = self._staged[0]
        is_whole = staged.real is None and list(staged.counts) == self.lengths
        return (staged.keys, staged.values) if is_whole else None

    def gather(self) -> PackedRows:
        """A packed copy of every row, oldest token first, staged tokens included.

        For several new tokens at once, which read what the ring is about to lose. The gap behind the sink is closed;
        such a row follows the same block rule as a whole one. May wait, as `settle` does.
        """
        self.settle()
        assert self.pool is not None
        return gather_rows(self.pool, self._books, self._settled_lengths(), self._staged)

    def attend_token(self, q: Tensor, scale: float | None = None) -> Tensor:
        """Attention of the newest token of each sequence over what its rows hold, (B, H, 1, D) -> (B, H, 1, D).

        The token must be settled, see `evict`. Safe in a CUDA graph.
        """
        assert self.pool is not None and not self._staged
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        workspace = self.group.workspace(q, self.num_kv_heads, self.page_size)
        return verbs_for(q.device).decode_paged(q, *self._pages(), self.pattern.config, factor, workspace=workspace)

    def append(
        self, keys: Tensor, values: Tensor, real: Tensor | None = None, *, counts: Sequence[int] | None = None
    ) -> None:
        """Stage new tokens; the tensors are kept until they settle.

        Args:
            keys, values: (B, G, T, D), the last dimension contiguous.
            real: (B, T) bool, False = padding, which is not stored; None = all real.
            counts: real tokens of each sequence, if the host knows them; otherwise it waits for `real`.

        Raises:
            ValueError: the kernels of this device take no pages that are as small as `page_size`.
        """
        if self.pool is None:
            least = verbs_for(keys.device).least_page
            if self.page_size < least:
                raise ValueError(f"page_size={self.page_size} is too small on {keys.device}; use {least} or more.")
            batch, heads = keys.shape[:2]
            self.pool = PagePool(batch * heads, self.page_size, keys)
            self._books, self._room = RowBooks(self.pattern, batch, heads), [0] * batch
            self.routes = HeadRoutes(torch.zeros(batch, heads, dtype=torch.bool))
            self.device_lengths = torch.zeros(batch, dtype=torch.int32, device=keys.device)
            self.modes = torch.zeros(batch, heads, dtype=torch.int32, device=keys.device)
        self.settle()
        if counts is None:
            counts = [keys.shape[2]] * len(keys) if real is None else real.sum(1).tolist()
        if any(counts):
            self._staged.append(StagedTokens(keys=keys, values=values, real=real, counts=tuple(counts)))
        self._books.add(counts)

    def assign(self, routes: HeadRoutes) -> None:
        """Set the routes without waiting for them; rows change at the next `evict`.

        Raises:
            ValueError: a row that already lost tokens would have to become full. Where the host does not know the
                routes yet, `settle` raises it.
        """
        if routes is self.routes:
            return
        self.settle()
        if routes.has_arrived:
            before = self.routes.host().flatten().tolist() if self.routes.has_arrived else self._books.rings
            self._books.refuse_revival(before, routes.host().flatten().tolist())
        self.routes, self._are_routes_new = routes, True

    def evict(self) -> None:
        """Nobody takes the staged tokens back: they settle as soon as the host knows the routes."""
        if self.pool is None or self._is_committed:
            return
        self._is_committed = True
        if self._are_routes_new and not self.routes.has_arrived:
            self.group.join(self)
        else:
            self.settle()

    def settle(self) -> None:
        """Move what `evict` released into pages; waits until the host knows the routes.

        Afterwards a row owns the pages that its tokens need; what the pool holds besides is at most an eighth of it.

        Raises:
            ValueError: as `assign`.
        """
        if not self._is_committed:
            return
        assert self.pool is not None
        config, books, before, lifted = self.pattern.config, self._books, self._settled_lengths(), []
        if self._are_routes_new:
            rings, old_rings = self._wanted_rings(), books.rings
            books.refuse_revival(old_rings, rings)
            books.set_rings(rings)
            books.evict()
            for b, num_settled in enumerate(before):
                own = range(b * self.num_kv_heads, (b + 1) * self.num_kv_heads)
                turning = [row for row in own if rings[row] and not old_rings[row]]
                if turning and num_settled:
                    lifted.append(lift_rows(self.pool, turning, num_settled, books.evicted[b], config))
            modes = torch.tensor(rings, dtype=torch.int32).view(self.modes.shape)
            self.modes.copy_(stage(modes, self.modes.device))
            self._room, self._are_routes_new = [0] * len(before), False
            self.group.leave(self)
        else:
            books.evict()
        self._is_committed = False
        if any(n > room for n, room in zip(self.lengths, self._room, strict=True)):
            self._take_pages(self.lengths)
        for rows in lifted:
            put_rings(self.pool, rows, config)
        self._write_staged()
        self.pool.trim()

    def reserve(self, num_tokens: int) -> None:
        """Take the pages of `num_tokens` more tokens a sequence, so that their steps take no memory.

        Until then neither the tensors move nor does the host do more than count. May wait, as `settle` does.
        """
        self.settle()
        self._take_pages([n + num_tokens for n in self.lengths], is_exact=True)

    def advance(self, num_tokens: int) -> None:
        """Count tokens that a replayed CUDA graph has appended: the device did it, the host's books follow.

        While a step is captured the host counts it although the device does nothing; take that back with -1.
        """
        self._books.add([num_tokens] * len(self.lengths))
        self._books.evict()

    def crop(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` real tokens of each sequence. Rows keep their pages.

        Raises:
            CacheDepthError: sparse rows no longer hold the window of an earlier position.
        """
        if self.pool is None or not any(counts):
            return
        self.settle()
        settled = self._settled_lengths()
        self._books.crop(counts)
        left, kept = [max(0, n - s) for n, s in zip(self.lengths, settled, strict=True)], []
        for part in self._staged:
            kept.append(part.crop([min(n, c) for n, c in zip(left, part.counts, strict=True)]))
            left = [n - c for n, c in zip(left, kept[-1].counts, strict=True)]
        self._staged = [part for part in kept if any(part.counts)]
        if (now := self._settled_lengths()) != settled:
            self._set_device_lengths(now)

    def select(self, indices: Sequence[int]) -> None:
        """Keep these sequences in this order; repeats copy. May wait, as `settle` does."""
        if self.pool is None:
            return
        self.settle()
        self.routes = HeadRoutes(self.routes.host()[list(indices)])
        num_before, used = len(self.lengths), self._count_pages(self._settled_lengths())
        self.pool.select(self._books.select(indices), used)
        self.pool.trim()
        index = stage(list(indices), self.modes.device)
        self._staged = [part.select(index, indices) for part in self._staged]
        if len(indices) == num_before:
            self.modes.copy_(self.modes[index])
            self.device_lengths.copy_(self.device_lengths[index])
        else:
            self.modes, self.device_lengths = self.modes[index], self.device_lengths[index]
            self._state_moves += 1
        self._measure_room()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        self.settle()
        memo[id(self.group)] = self.group
        memo[id(self.routes)] = HeadRoutes(self.routes.host())
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def _wanted_rings(self) -> list[bool]:
        return [is_sparse and not self.keeps_all for is_sparse in self.routes.host().flatten().tolist()]

    def _settled_lengths(self) -> list[int]:
        return [n - sum(part.counts[b] for part in self._staged) for b, n in enumerate(self.lengths)]

    def _pages(self) -> tuple[Tensor, ...]:
        assert self.pool is not None
        return self.pool.keys, self.pool.values, self.pool.table, self.device_lengths, self.modes

    def _count_pages(self, lengths: Sequence[int]) -> list[int]:
        return [-(-n // self.page_size) for n in self._books.count_slots(lengths)]

    def _take_pages(self, lengths: Sequence[int], *, is_exact: bool = False) -> None:
        assert self.pool is not None
        self.pool.provide(self._count_pages(lengths), is_exact=is_exact)
        self._measure_room()

    def _measure_room(self) -> None:
        assert self.pool is not None
        self._room = [sys.maxsize] * len(self.lengths)
        for row, (count, is_ring) in enumerate(zip(self.pool.counts, self._books.rings, strict=True)):
            slots, b = count * self.page_size, self._books.sequence(row)
            if not is_ring or slots < self._books.ring_size:
                self._room[b] = min(self._room[b], slots)

    def _write_staged(self) -> None:
        verbs, config = verbs_for(self.modes.device), self.pattern.config
        staged, self._staged = self._staged, []
        if len(staged) == 1 and staged[0].keys.shape[2] == 1 and staged[0].real is None:
            verbs.append_token(staged[0].keys, staged[0].values, *self._pages(), config)
        elif staged:
            start = self.device_lengths.clone()
            self._set_device_lengths(self.lengths)
            for part in staged:
                verbs.compact_rows(part.keys, part.values, part.positions(start), *self._pages(), config)
                start = part.ends(start)

    def _set_device_lengths(self, lengths: Sequence[int]) -> None:
        self.device_lengths.copy_(stage(torch.tensor(lengths, dtype=torch.int32), self.modes.device))
