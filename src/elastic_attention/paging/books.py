"""What the host knows of a layer's rows, as plain integers; nothing here touches a device.

Shape letters: B batch, G KV heads, R = B * G rows.
"""

from collections.abc import Sequence

from ..patterns import StreamingPattern
from ..patterns.cropping import count_evicted_after_crop


class RowBooks:
    """Tokens of each sequence, and which rows are rings.

    Attributes:
        num_kv_heads: G.
        lengths: real tokens of each sequence.
        evicted: tokens that the rings of each sequence have dropped.
        rings: (R,) is the row a ring?
    """

    def __init__(self, pattern: StreamingPattern, batch: int, num_kv_heads: int) -> None:
        self.pattern, self.num_kv_heads = pattern, num_kv_heads
        self.ring_size = pattern.config.num_sink_tokens + pattern.config.local_window
        self.lengths, self.evicted = [0] * batch, [0] * batch
        self.rings: list[bool] = []
        self._ring_sequences: list[int] = []
        self.set_rings([False] * (batch * num_kv_heads))

    def set_rings(self, rings: Sequence[bool]) -> None:
        """From now on these rows are rings."""
        self.rings = list(rings)
        self._ring_sequences = sorted({self.sequence(row) for row, is_ring in enumerate(rings) if is_ring})

    def sequence(self, row: int) -> int:
        """The sequence of a row."""
        return row // self.num_kv_heads

    def add(self, counts: Sequence[int]) -> None:
        """Count new tokens."""
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]

    def evict(self) -> None:
        """Count what rings drop at their present lengths."""
        for b in self._ring_sequences:
            self.evicted[b] = max(self.evicted[b], self.pattern.count_evicted(self.lengths[b]))

    def stored_lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return [
            self.lengths[self.sequence(row)] - (self.evicted[self.sequence(row)] if is_ring else 0)
            for row, is_ring in enumerate(self.rings)
        ]

    def count_slots(self, lengths: Sequence[int]) -> list[int]:
        """Slots that each row needs if its sequence holds this many tokens."""
        return [
            min(lengths[self.sequence(row)], self.ring_size) if is_ring else lengths[self.sequence(row)]
            for row, is_ring in enumerate(self.rings)
        ]

    def refuse_revival(self, before: Sequence[bool], after: Sequence[bool]) -> None:
        """Rows may become full only where nothing was dropped.

        Args:
            before, after: (R,) is the row sparse?

        Raises:
            ValueError: a row that already lost tokens would have to become full.
        """
        for row, (was_sparse, is_sparse) in enumerate(zip(before, after, strict=True)):
            if was_sparse and not is_sparse and self.evicted[self.sequence(row)]:
                raise ValueError("A sparse head that dropped tokens cannot become full; start a new cache.")

    def crop(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` tokens of each sequence.

        Raises:
            CacheDepthError: rings no longer hold the window of an earlier position; nothing has changed.
        """
        self.evicted = count_evicted_after_crop(
            self.pattern, self.lengths, self.evicted, counts, evicting=self._ring_sequences
        )
        self.lengths = [n - c for n, c in zip(self.lengths, counts, strict=True)]

    def select(self, indices: Sequence[int]) -> list[int]:
        """Keep these sequences in this order; returns the old row of each new one."""
        heads = self.num_kv_heads
        sources = [b * heads + g for b in indices for g in range(heads)]
        self.lengths, self.evicted = ([x[b] for b in indices] for x in (self.lengths, self.evicted))
        self.set_rings([self.rings[row] for row in sources])
        return sources
