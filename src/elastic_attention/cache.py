"""Ragged key/value storage of one attention layer: one row per (sequence, KV head), real tokens only.

Full rows keep every token. Sparse rows keep the sink and the local blocks; the gap is closed, so a row is always one
contiguous stretch (`patterns.streaming` says why no positions are needed). Pure storage: it knows no model.

Shape letters: B batch, T new tokens, G KV heads, D head dim, N rows of a group, C capacity in tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .patterns.cropping import count_evicted_after_crop
from .types import HeadRoutes, PackedRows, Pattern, stage


class RowGroup:
    """Rows that are stored alike: `rows` lists b * G + g in ascending order, keys and values are (N, C, D)."""

    def __init__(self, rows: list[int], keys: Tensor, values: Tensor, *, is_evicting: bool) -> None:
        self.rows, self.keys, self.values, self.is_evicting = rows, keys, values, is_evicting
        self.index = torch.tensor(rows, dtype=torch.long, device=keys.device)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a row; grows by an eighth, so that decoding rarely copies.

        Room is zeroed: a masked key counts for nothing only while its value is finite.
        """
        capacity = self.keys.shape[1]
        if length > capacity:
            extra = max(length - capacity, capacity // 8 if capacity else 0)
            self.keys, self.values = (
                torch.cat([x, x.new_zeros(len(x), extra, x.shape[2])], dim=1) for x in (self.keys, self.values)
            )


class ElasticCache:
    """Keys and values of one layer.

    Args:
        pattern: decides what sparse rows keep.
        keeps_all: sparse rows keep everything too (decode="full").

    Attributes:
        num_kv_heads: G.
        lengths: real tokens of each sequence, host integers.
        evicted: tokens dropped from the sparse rows of each sequence.
        routes: (B, G) of the sequences.
        groups: the rows that keep everything, then the rows that evict.
    """

    def __init__(self, pattern: Pattern, *, keeps_all: bool = False) -> None:
        self.pattern, self.keeps_all = pattern, keeps_all
        self.num_kv_heads = 0
        self.lengths: list[int] = []
        self.evicted: list[int] = []
        self.routes = HeadRoutes(torch.empty(0, 0, dtype=torch.bool))
        self.groups: tuple[RowGroup, RowGroup] | None = None

    def stored_lengths(self, group: RowGroup) -> list[int]:
        """Tokens that each row of the group stores."""
        stored = [n - e if group.is_evicting else n for n, e in zip(self.lengths, self.evicted, strict=True)]
        return [stored[row // self.num_kv_heads] for row in group.rows]

    def count_stored(self) -> int:
        """Tokens stored, over all rows."""
        return sum(sum(self.stored_lengths(group)) for group in self.groups or ())

    def dense_view(self) -> tuple[Tensor, Tensor] | None:
        """(B, G, S, D) views of keys and values if every row keeps everything and all lengths agree, else None."""
        if self.groups is None or self.groups[1].rows or min(self.lengths) != max(self.lengths):
            return None
        shape, length = (len(self.lengths), self.num_kv_heads), self.lengths[0]
        group = self.groups[0]
        return group.keys[:, :length].unflatten(0, shape), group.values[:, :length].unflatten(0, shape)

    def gather(self) -> PackedRows:
        """A packed copy of every row, oldest token first, the gap behind the sink closed."""
        assert self.groups is not None
        place = {row: (group, i) for group in self.groups for i, row in enumerate(group.rows)}
        stored = [self.stored_lengths(group) for group in self.groups]
        rows = [(group, i, stored[group.is_evicting][i]) for _, (group, i) in sorted(place.items())]
        lengths = torch.tensor([n for *_, n in rows], dtype=torch.int32)
        device = self.groups[0].keys.device
        return PackedRows(
            keys=torch.cat([group.keys[i, :n] for group, i, n in rows]),
            values=torch.cat([group.values[i, :n] for group, i, n in rows]),
            starts=stage((lengths.cumsum(0) - lengths).int(), device),
            lengths=stage(lengths, device),
        )

    def attend_token(self, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest token of each sequence, (B, H, 1, D), over what its rows store."""
        rows_q = q.reshape(len(self.lengths) * self.num_kv_heads, 1, -1, q.shape[-1])  # query heads of a row as queries
        out = torch.empty_like(rows_q)
        for group in self.groups or ():
            if group.rows:
                out[group.index] = self._attend_group(rows_q[group.index], group, scale)
        return out.reshape(q.shape)

    def _attend_group(self, q: Tensor, group: RowGroup, scale: float) -> Tensor:
        lengths = self.stored_lengths(group)
        longest, mask = max(lengths), None
        if min(lengths) < longest:
            ends = torch.tensor(lengths, device=q.device)[:, None, None, None]
            mask = torch.arange(longest, device=q.device) < ends
        k, v = group.keys[:, None, :longest], group.values[:, None, :longest]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    def append(
        self, keys: Tensor, values: Tensor, real: Tensor | None = None, *, counts: Sequence[int] | None = None
    ) -> None:
        """Store new tokens.

        Args:
            keys, values: (B, G, T, D).
            real: (B, T) bool, False = padding, which is not stored; None = all real.
            counts: real tokens of each sequence, if known.
        """
        batch, heads, num_new, width = keys.shape
        if self.groups is None:
            self.num_kv_heads, self.lengths, self.evicted = heads, [0] * batch, [0] * batch
            self.routes = HeadRoutes(torch.zeros(batch, heads, dtype=torch.bool))
            empty = keys.new_empty(batch * heads, 0, width)
            self.groups = (
                RowGroup(list(range(batch * heads)), empty, empty, is_evicting=False),
                RowGroup([], empty[:0], empty[:0], is_evicting=True),
            )
        if counts is None:
            counts = [num_new] * batch if real is None else real.sum(1).tolist()
        for group in self.groups:
            if group.rows:
                self._append_rows(group, keys.flatten(0, 1), values.flatten(0, 1), counts, real)
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]

    def _append_rows(
        self, group: RowGroup, keys: Tensor, values: Tensor, counts: Sequence[int], real: Tensor | None
    ) -> None:
        starts = self.stored_lengths(group)
        if len(group.rows) < len(keys):
            keys, values = keys[group.index], values[group.index]
        group.reserve(max(s + counts[row // self.num_kv_heads] for s, row in zip(starts, group.rows, strict=True)))
        if real is None and min(starts) == max(starts):
            group.keys[:, starts[0] : starts[0] + keys.shape[1]] = keys
            group.values[:, starts[0] : starts[0] + keys.shape[1]] = values
            return
        if real is None:
            real = torch.ones(len(counts), keys.shape[1], dtype=torch.bool, device=keys.device)
        row_real = real[group.index // self.num_kv_heads]
        column = torch.tensor(starts, device=keys.device)[:, None] + row_real.cumsum(1) - 1
        row = torch.arange(len(keys), device=keys.device)[:, None].expand_as(column)
        target = row[row_real], column[row_real]
        group.keys[target], group.values[target] = keys[row_real], values[row_real]

    def assign(self, routes: HeadRoutes) -> None:
        """Set the routes; waits until the host knows them.

        Raises:
            ValueError: a row that already lost tokens would have to become full.
        """
        assert self.groups is not None
        if routes is self.routes:
            return
        before, after = self.routes.host(), routes.host()
        has_evicted = torch.tensor([e > 0 for e in self.evicted])[:, None]
        if bool((before & ~after & has_evicted).any()):
            raise ValueError("A sparse head that dropped tokens cannot become full; start a new cache.")
        self.routes = routes
        if not self.keeps_all and not torch.equal(before, after):
            evicting = after.flatten().tolist()
            self._regroup([(row, row) for row in range(len(evicting))], evicting)

    def select(self, indices: Sequence[int]) -> None:
        """Keep these sequences in this order; repeats copy."""
        if self.groups is None:
            return
        heads = self.num_kv_heads
        moves = [(new * heads + g, old * heads + g) for new, old in enumerate(indices) for g in range(heads)]
        evicting_rows = set(self.groups[1].rows)
        self._regroup(moves, [old in evicting_rows for _, old in moves])
        self.lengths = [self.lengths[i] for i in indices]
        self.evicted = [self.evicted[i] for i in indices]
        self.routes = HeadRoutes(self.routes.host()[list(indices)])

    def _regroup(self, moves: list[tuple[int, int]], is_evicting: list[bool]) -> None:
        """Rebuild the groups from (new row, old row) pairs."""
        assert self.groups is not None
        place = {row: (group, i) for group in self.groups for i, row in enumerate(group.rows)}
        built = []
        for kind in (False, True):
            pairs = [pair for pair, evicts in zip(moves, is_evicting, strict=True) if evicts == kind]
            built.append(self._collect([new for new, _ in pairs], [place[old] for _, old in pairs], kind))
        self.groups = (built[0], built[1])

    def _collect(self, rows: list[int], places: list[tuple[RowGroup, int]], is_evicting: bool) -> RowGroup:
        assert self.groups is not None
        sources = [group for group in self.groups if any(p[0] is group for p in places)]
        like = self.groups[0].keys
        turns_sparse = is_evicting and not all(group.is_evicting for group in sources)
        if len(sources) == 1 and not (turns_sparse and any(self.evicted)):
            source, index = sources[0], [i for _, i in places]
            if index == list(range(len(source.rows))):
                return RowGroup(rows, source.keys, source.values, is_evicting=is_evicting)
            return RowGroup(rows, source.keys[index], source.values[index], is_evicting=is_evicting)
        capacity = max((group.keys.shape[1] for group in sources), default=0)
        keys, values = (like.new_zeros(len(rows), capacity, like.shape[2]) for _ in range(2))
        sink = self.pattern.num_pinned_tokens
        for target, (group, i) in enumerate(places):
            # A full row that turns sparse drops what the sparse rows of its sequence have dropped before.
            is_late = is_evicting and not group.is_evicting
            gap = self.evicted[group.rows[i] // self.num_kv_heads] if is_late else 0
            for new, old in ((keys, group.keys[i]), (values, group.values[i])):
                kept = torch.cat([old[:sink], old[sink + gap :]]) if gap else old
                new[target, : len(kept)] = kept
        return RowGroup(rows, keys, values, is_evicting=is_evicting)

    def evict(self) -> None:
        """Drop what the evicting rows no longer need and close the gap."""
        if self.groups is None or not self.groups[1].rows:
            return
        group = self.groups[1]
        wanted = list(self.evicted)
        for b in {row // self.num_kv_heads for row in group.rows}:
            wanted[b] = max(wanted[b], self.pattern.count_evicted(self.lengths[b]))
        drops = [w - e for w, e in zip(wanted, self.evicted, strict=True)]
        row_drops = [drops[row // self.num_kv_heads] for row in group.rows]
        if not any(row_drops):
            return
        before = self.stored_lengths(group)
        self.evicted = wanted
        after = self.stored_lengths(group)
        sink = self.pattern.num_pinned_tokens
        is_uniform = min(row_drops) == max(row_drops) and min(before) == max(before)
        spans = (
            [(slice(None), row_drops[0], after[0])]
            if is_uniform
            else [
                (slice(i, i + 1), drop, length) for i, (drop, length) in enumerate(zip(row_drops, after, strict=True))
            ]
        )
        group.keys, group.values = (_close_gap(x, spans, sink, max(after)) for x in (group.keys, group.values))

    def crop(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` real tokens of each sequence.

        Raises:
            CacheDepthError: sparse rows no longer hold the window of an earlier position.
        """
        if self.groups is None:
            return
        evicting = {row // self.num_kv_heads for row in self.groups[1].rows}
        self.evicted = count_evicted_after_crop(self.pattern, self.lengths, self.evicted, counts, evicting=evicting)
        self.lengths = [n - c for n, c in zip(self.lengths, counts, strict=True)]

    def count_allocated_bytes(self) -> list[int]:
        """Bytes of the buffers, by sequence."""
        totals = [0] * len(self.lengths)
        for group in self.groups or ():
            _, capacity, width = group.keys.shape
            for row in group.rows:
                totals[row // self.num_kv_heads] += 2 * capacity * width * group.keys.element_size()
        return totals


def _close_gap(buffer: Tensor, spans: list[tuple[slice, int, int]], sink: int, capacity: int) -> Tensor:
    """Copy (N, C, D) without the `drop` tokens behind the sink; spans are (rows, drop, length afterwards)."""
    new = buffer.new_zeros(len(buffer), capacity, buffer.shape[2])
    for rows, drop, length in spans:
        head = min(sink, length)
        new[rows, :head] = buffer[rows, :head]
        new[rows, head:length] = buffer[rows, head + drop : length + drop]
    return new
