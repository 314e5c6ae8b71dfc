"""How much heads really read whose choice depends on the data, observed from outside.

The books of a model count such heads as dense, because the host does not see their lists. An evaluation wants to know:
inside of `observe_reads`, every call's plan is noted on the device and read when it is over.

Shape letters: B sequences, T queries, S keys, H query heads, G KV heads, M query blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..kernels.block_lists import BlockLists
from ..kernels.modes import FULL, LISTS, STREAMING, TRIANGLE
from ..kernels.spans import Spans
from ..patterns import build_pattern, count_listed_pairs
from ..sparsity import count_causal_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Noted:
    """One call: what its heads do, and where its sequences lie."""

    modes: Tensor
    lists: BlockLists | None
    dense_rows: Tensor | None
    config: StreamingConfig
    num_queries: int
    num_keys: int
    spans: Spans | None


@dataclass(slots=True)
class ReadObserver:
    """Notes of calls, for `sum_pairs`."""

    notes: list[_Noted] = field(default_factory=list)

    def sum_pairs(self, num_sequences: int) -> list[tuple[int, int]]:
        """(pairs read, causal pairs) of every sequence over the KV heads of all noted calls; waits for the device.

        Calls over another number of sequences (chunks against a cache) are left out. Queries of a KV head may read
        different lists; their mean counts.
        """
        totals = [(0, 0)] * num_sequences
        for note in self.notes:
            if len(note.modes) == num_sequences:
                added = [_count_sequence(note, b) for b in range(num_sequences)]
                totals = [(r + x, c + y) for (r, c), (x, y) in zip(totals, added, strict=True)]
        return totals


_observer: ContextVar[ReadObserver | None] = ContextVar("read_observer", default=None)


@contextmanager
def observe_reads() -> Iterator[ReadObserver]:
    """Inside, plans with block lists or dense rows are noted in the observer that is yielded."""
    observer = ReadObserver()
    token = _observer.set(observer)
    try:
        yield observer
    finally:
        _observer.reset(token)


def note_reads(
    modes: Tensor,
    lists: BlockLists | None,
    dense_rows: Tensor | None,
    config: StreamingConfig,
    q: Tensor,
    k: Tensor,
    spans: Spans | None,
) -> None:
    """Tell the observer, if there is one, of a call with block lists or triangle heads.

    Args:
        modes: (sequences, G), numbers of `kernels.modes`.
        dense_rows: (sequences, 2) int, first position and end of the rows that read everything.
        q: (B, H, T, D); k: (B, G, S, D); only their sizes are kept.
    """
    observer = _observer.get()
    if observer is not None and (lists is not None or dense_rows is not None):
        observer.notes.append(
            _Noted(
                modes=modes,
                lists=lists,
                dense_rows=dense_rows,
                config=config,
                num_queries=q.shape[2],
                num_keys=k.shape[2],
                spans=spans,
            )
        )


def _count_sequence(note: _Noted, b: int) -> tuple[int, int]:
    """(pairs read, causal pairs) of one sequence over its KV heads."""
    stop = note.num_keys if note.spans is None else int(note.spans.key_length[b])
    start = stop - (note.num_queries if note.spans is None else int(note.spans.query_length[b]))
    causal = count_causal_pairs(start, stop)
    # The queries of [first, last) read everything in heads with lists and in triangle heads.
    first, last = (stop, stop) if note.dense_rows is None else note.dense_rows[b].clamp(start, stop).tolist()
    dense = count_causal_pairs(first, last)
    streaming = build_pattern(note.config)
    modes = note.modes[b].tolist()
    known = {
        FULL: causal,
        STREAMING: streaming.count_pairs(start, stop),
        TRIANGLE: streaming.count_pairs(start, first) + dense + streaming.count_pairs(last, stop),
    }
    read = sum(known[mode] for mode in modes if mode != LISTS)
    if note.lists is not None and LISTS in modes:
        block = note.lists.block_size
        listed = count_listed_pairs(note.lists.counts[b], block, start // block, start, first)
        by_head = listed.double().unflatten(0, (len(modes), -1)).mean(1).cpu()
        is_listed = torch.tensor([mode == LISTS for mode in modes])
        read += round(float(by_head[is_listed].sum())) + dense * int(is_listed.sum())
    return read, len(modes) * causal
