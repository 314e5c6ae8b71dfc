"""Samples that are made once for all methods of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from elastic_attention.evaluation.plan import EvalPlan, list_batches
from elastic_attention.evaluation.runner import build_batches
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Skipped, Suite, SuiteSample


class KeptSuite:
    """A suite that makes each sample once for all methods; see `Suite` for what its methods promise."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._kept: dict[tuple[str, int, int, int], SuiteSample | Skipped] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.suite, name)

    def prepare(self, plan: EvalPlan, tokenizer: Tokenizer, workers: int) -> None:
        """Make what is missing for a plan, in `workers` processes."""
        missing = [
            batch
            for batch in list_batches(plan, self.suite)
            if any((batch.task, i, batch.length, plan.seed) not in self._kept for i in batch.indexes)
        ]
        for batch, built in build_batches(self.suite, tokenizer, missing, seed=plan.seed, workers=workers):
            for index, sample in zip(batch.indexes, built, strict=True):
                self._kept[batch.task, index, batch.length, plan.seed] = sample

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """The samples that were prepared."""
        return iter([self._kept[task, index, length, seed] for index in indexes])
