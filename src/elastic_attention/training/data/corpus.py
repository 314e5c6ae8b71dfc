"""All samples of a run, from every file, as one numbered corpus."""

import hashlib
import json
import logging
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from .batch import PackedSample
from .caching import cache_folder, tokenize_source
from .encoding import Encoder
from .fitting import Fitting, fit_samples, keep_pieces
from .sources import RecordSource
from .store import COLUMNS, SampleStore

_logger = logging.getLogger(__name__)


class Corpus:
    """Samples by number: those of the first source, then those of the second, and so on.

    Tokens stay on disk; what is held is a few integers a sample. Over-long samples are counted, reported in the log and
    treated as the policy says.

    Args:
        sources: of records.
        encoder: makes tokens where no cache has them.
        capacity: tokens of a pack.
        over_long: policy of `fit_samples`.
        known: categories that may occur, None = any.
        cache: folder of the caches, None = the user's.
        workers: processes that tokenise.
        bad_records: "error" or "skip", of `tokenize_source`.

    Attributes:
        lengths: (samples,) int64, tokens of each sample as it stands in a pack.
        categories: (samples,) int64, numbers of `category_names`.
        fitting: what the policy did.
        skipped: why each malformed record was left out.

    Raises:
        DataError: a record is malformed or of an unknown category, or a sample is too long for the policy.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        encoder: Encoder,
        *,
        capacity: int,
        over_long: str,
        known: Collection[str] | None = None,
        cache: str | None = None,
        workers: int = 0,
        bad_records: str = "error",
    ) -> None:
        folder = cache_folder(cache)
        self._stores = [
            tokenize_source(source, encoder, folder, workers=workers, bad_records=bad_records) for source in sources
        ]
        self._sources = tuple(sources)
        self.skipped = [reason for store in self._stores for reason in store.facts["skipped"]]
        self._starts = np.cumsum([0, *map(len, self._stores)]).tolist()
        self.category_names = sorted({name for store in self._stores for name in store.category_names})
        self.categories = np.concatenate([self._number_categories(store) for store in self._stores])
        lengths = np.concatenate([store.column("length") for store in self._stores])
        contexts = [store.column("context_last") - store.column("context_first") for store in self._stores]

        for number, name in enumerate(self.category_names):
            if known is not None and name not in known:
                first = self.where(int(np.flatnonzero(self.categories == number)[0]))
                raise DataError(f"{first}: category {name!r} has no interval; add one to [intervals]: {sorted(known)}.")
        self.fitting: Fitting = fit_samples(
            lengths,
            np.concatenate(contexts),
            [self.category_names[i] for i in self.categories],
            capacity=capacity,
            policy=over_long,
            where=self.where,
        )
        self.lengths = lengths - self.fitting.removed
        if self.skipped:
            _logger.warning("%d malformed records are left out; the first: %s", len(self.skipped), self.skipped[0])
        if self.fitting.over_long:
            _logger.warning("%s", self.fitting)

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, number: int) -> str:
        """The place of a sample in the files of the run, for messages."""
        which = bisect_right(self._starts, number) - 1
        return self._sources[which].where(int(self._stores[which].column("row")[number - self._starts[which]]))

    def _number_categories(self, store: SampleStore) -> np.ndarray:
        numbers = np.array([self.category_names.index(name) for name in store.category_names])
        return numbers[store.column("category")]

    @property
    def largest_token(self) -> int:
        """The largest token id of all samples."""
        return max(store.facts["largest_token"] for store in self._stores)

    @property
    def identity(self) -> str:
        """Checksum of records, tokenizer and cuts; with equal ones, every number means the same sample."""
        stores = [store.folder.name for store in self._stores]
        parts = [stores, self.fitting.removed.tolist(), self.fitting.kept.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def first_of_tasks(self, count: int) -> np.ndarray:
        """Numbers of the first `count` samples of each task, ascending."""
        by_task: dict[str, list[int]] = {}
        for number in self.fitting.kept.tolist():
            which = bisect_right(self._starts, number) - 1
            store = self._stores[which]
            task = store.task_names[store.table[number - self._starts[which], COLUMNS.index("task")]]
            by_task.setdefault(task, []).append(number)
        return np.array(sorted(number for group in by_task.values() for number in group[:count]), dtype=np.int64)

    def report(self) -> dict[str, Any]:
        """Facts for a record: samples and tokens of each category, and what became of over-long samples."""
        kept = self.fitting.kept
        rows = {}
        for number, name in enumerate(self.category_names):
            chosen = kept[self.categories[kept] == number]
            rows[name] = {"samples": len(chosen), "tokens": int(self.lengths[chosen].sum())}
        return {
            "categories": rows,
            "over_long": self.fitting.over_long,
            "over_long_policy": self.fitting.policy,
            "skipped": len(self.skipped),
        }

    def sample(self, number: int, weight: float) -> PackedSample:
        """Read a sample, cut as the policy says; `weight` is its share of the step's loss."""
        which = bisect_right(self._starts, number) - 1
        store, index = self._stores[which], number - self._starts[which]
        row = store.table[index].tolist()
        length, context, question, response = row[1], (row[2], row[3]), (row[4], row[5]), row[6]
        removed = int(self.fitting.removed[number])
        return PackedSample(
            tokens=store.read_tokens(index, keep_pieces(length, context, removed)),
            context=(context[0], context[1] - removed),
            question=(question[0] - removed, question[1] - removed),
            response=(response - removed, length - removed),
            sample_id=number,
            category=store.category_names[row[7]],
            task=store.task_names[row[8]],
            weight=weight,
        )
