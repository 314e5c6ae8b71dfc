"""Samples that are made once for all methods and processes of a study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from elastic_attention.evaluation.plan import EvalPlan, list_batches
from elastic_attention.evaluation.runner import build_batches
from elastic_attention.records import write_file
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Skipped, Suite, SuiteSample

_TUPLES = ("prompt_ids", "answers", "stop", "target_ids")
Cell = tuple[str, int]
"""Task and length."""


class KeptSuite:
    """A suite that makes each sample once and keeps it in a folder; see `Suite` for what its methods promise."""

    def __init__(self, suite: Suite, folder: Path) -> None:
        self.suite, self.folder = suite, folder
        self._kept: dict[tuple[str, int, int], SuiteSample | Skipped] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.suite, name)

    def prepare(self, plan: EvalPlan, tokenizer: Tokenizer, workers: int) -> None:
        """Read what a plan asks; what is missing is made in `workers` processes, while others wait for it."""
        wanted = [b for b in list_batches(plan, self.suite) if (b.task, b.indexes[-1], b.length) not in self._kept]
        if not wanted:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            paths = {(b.task, b.length): self._find(b.task, b.length, plan) for b in wanted}
            missing = [b for b in wanted if not paths[b.task, b.length].exists()]
            made: dict[Cell, list[SuiteSample | Skipped]] = {}
            for batch, built in build_batches(self.suite, tokenizer, missing, seed=plan.seed, workers=workers):
                made.setdefault((batch.task, batch.length), []).extend(built)
            for cell, samples in made.items():
                write_file(paths[cell], "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        for path in paths.values():
            for line in path.read_text(encoding="utf-8").splitlines():
                sample = read_sample(line)
                self._kept[sample.task, sample.index, sample.length] = sample

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """The samples that were prepared."""
        return iter([self._kept[task, index, length] for index in indexes])

    def _find(self, task: str, length: int, plan: EvalPlan) -> Path:
        facts = [self.suite.name, self.suite.describe(), plan.samples, plan.seed]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.folder / f"{self.suite.name}-{task}-{length}-{key}.jsonl"


def read_sample(line: str) -> SuiteSample | Skipped:
    """A sample from its line of JSON."""
    fields: dict[str, Any] = json.loads(line)
    if "reason" in fields:
        return Skipped(**fields)
    return SuiteSample(**fields | {name: tuple(fields[name]) for name in _TUPLES})
