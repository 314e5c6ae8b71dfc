"""Pages of one layer and the rows that own them. A row is a (sequence, KV head); the pool knows nothing of tokens.

Shape letters: R rows, P pages, D head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import stage

_SLACK = 8  # a pool grows by an eighth of itself, and gives memory back once more than an eighth is unowned


class PagePool:
    """Keys and values in pages, and the page table that kernels read.

    Args:
        num_rows: R.
        page_size: tokens of a page.
        like: any tensor of the right device, dtype and last dimension D.

    Attributes:
        keys, values: (P, page_size, D).
        table: (R, most pages of a row) int32 on the device.
        counts: pages of each row, host integers.
        moves: how often `keys`, `values` or `table` became other tensors; a captured CUDA graph is stale when it
            changes.
    """

    def __init__(self, num_rows: int, page_size: int, like: Tensor) -> None:
        self.page_size = page_size
        self.keys, self.values = (like.new_zeros(0, page_size, like.shape[-1]) for _ in range(2))
        self.counts = [0] * num_rows
        self.moves = 0
        self._free = torch.empty(0, dtype=torch.int32)
        self._host_table = torch.zeros(num_rows, 0, dtype=torch.int32)
        self.table = stage(self._host_table, like.device)

    @property
    def num_free(self) -> int:
        """Pages that no row owns."""
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, keys and values."""
        return 2 * self.page_size * self.keys.shape[2] * self.keys.element_size()

    def provide(self, needed: Sequence[int], *, is_exact: bool = False) -> None:
        """Give each row at least `needed[row]` pages.

        The first pages and those asked for with `is_exact` are taken to the page, later ones with an eighth on top.
        """
        extra = [max(0, n - c) for n, c in zip(needed, self.counts, strict=True)]
        if not any(extra):
            return
        missing = sum(extra) - self.num_free
        if missing > 0:
            self._resize(len(self.keys) + (missing if is_exact else max(missing, len(self.keys) // _SLACK)))
        self._widen(max(n + c for n, c in zip(extra, self.counts, strict=True)), is_exact=is_exact)
        for row, n in enumerate(extra):
            if n:
                self._take(self._host_table[row], row, n)
        self._publish()

    def release(self, rows: Sequence[int]) -> None:
        """Take all pages from these rows; `provide` must follow before a kernel runs.

        Pages are cleared: kernels load slots that hold no token, and 0 times nan of another sequence would be nan.
        """
        freed = [self._host_table[row, : self.counts[row]] for row in rows]
        if freed:
            self._free = torch.cat([self._free, *freed])
            index = stage(torch.cat(freed).long(), self.keys.device)
            self.keys.index_fill_(0, index, 0)
            self.values.index_fill_(0, index, 0)
        for row in rows:
            self.counts[row] = 0
            self._host_table[row] = 0

    def select(self, sources: Sequence[int], used: Sequence[int]) -> None:
        """Row i becomes a copy of the old row sources[i], of whose pages used[sources[i]] hold tokens.

        A row's first copy keeps its pages, further ones copy those in use; pages of rows that are gone are freed.
        """
        old_table, old_counts = self._host_table, self.counts
        first: dict[int, int] = {}
        for row, source in enumerate(sources):
            first.setdefault(source, row)
        self.release([row for row in range(len(old_counts)) if row not in first])
        repeats = [row for row, source in enumerate(sources) if first[source] != row]
        missing = sum(used[sources[row]] for row in repeats) - self.num_free
        if missing > 0:
            self._resize(len(self.keys) + missing)
        self._host_table = old_table.new_zeros(len(sources), old_table.shape[1])
        self.counts = [0] * len(sources)
        for source, row in first.items():
            self.counts[row] = old_counts[source]
            self._host_table[row] = old_table[source]
        origin, target = [], []
        for row in repeats:
            self._take(self._host_table[row], row, used[sources[row]])
            origin.append(old_table[sources[row], : self.counts[row]])
            target.append(self._host_table[row, : self.counts[row]])
        if repeats:
            old, new = (stage(torch.cat(pages).long(), self.keys.device) for pages in (origin, target))
            for pages in (self.keys, self.values):
                pages.index_copy_(0, new, pages.index_select(0, old))
        self._publish()

    def trim(self) -> None:
        """Give pages without an owner back once they are more than an eighth; copies the others."""
        if self.num_free * _SLACK <= len(self.keys):
            return
        owned = torch.cat([self._host_table[row, :n] for row, n in enumerate(self.counts)])
        index = stage(owned.long(), self.keys.device)
        self.keys, self.values = (pages.index_select(0, index) for pages in (self.keys, self.values))
        self._free = self._free[:0]
        start = 0
        for row, n in enumerate(self.counts):
            self._host_table[row, :n] = torch.arange(start, start + n, dtype=torch.int32)
            start += n
        self.moves += 1
        self._publish()

    def find(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Index into the tokens of the pool, `keys.flatten(0, 1)`; rows and slots are int tensors that broadcast."""
        pages = self.table[rows.long(), (slots // self.page_size).long()].long()
        return pages * self.page_size + slots % self.page_size

    def _take(self, entries: Tensor, row: int, count: int) -> None:
        start = self.counts[row]
        entries[start : start + count] = self._free[:count]
        self._free = self._free[count:]
        self.counts[row] += count

    def _resize(self, num_pages: int) -> None:
        num_old = len(self.keys)
        shape = (num_pages - num_old, *self.keys.shape[1:])
        self.keys, self.values = (torch.cat([pages, pages.new_zeros(shape)]) for pages in (self.keys, self.values))
        self._free = torch.cat([self._free, torch.arange(num_old, num_pages, dtype=torch.int32)])
        self.moves += 1

    def _widen(self, width: int, *, is_exact: bool) -> None:
        have = self._host_table.shape[1]
        if width > have:
            width = width if is_exact else max(width, have + have // _SLACK)
            self._host_table = torch.nn.functional.pad(self._host_table, (0, width - have))

    def _publish(self) -> None:
        table = stage(self._host_table, self.keys.device)
        if table.shape == self.table.shape:
            self.table.copy_(table)
        else:
            self.table = table.clone()
            self.moves += 1
