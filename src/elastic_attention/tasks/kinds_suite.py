"""The project's own held-out samples as a suite: every kind of `tasks.KINDS`, scored by the tokens of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import corpora_digest, load_corpora
from elastic_attention.tasks.drawing import SPLITS
from elastic_attention.tasks.registry import KINDS, generate
from elastic_attention.tasks.sample import Tokenizer, prompt_text, render
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample

SAMPLES = 400


class KindsSuite:
    """Held-out samples; see `Suite` for what its methods promise.

    The answer's tokens are given, and the model says what it would have put at each place. An "exact" kind scores 1
    when that is the answer throughout, which is when greedy decoding would have produced it; "token_accuracy" kinds
    score the share of places. `length` bounds the prompt alone, as in training.

    Args:
        data: folder of `tasks.corpora`; None takes the texts in the package.
        split: "heldout", or "heldout_format" for a wording that training never sees.
    """

    default_lengths = (1024, 2048)

    def __init__(self, name: str, *, data: Path | None = None, split: str = "heldout") -> None:
        if split not in SPLITS[1:]:
            raise DataError(f"split={split!r} is unknown; use {' or '.join(SPLITS[1:])}.")
        self.name, self.data, self.split = name, data, split
        self.tasks = tuple(KINDS)
        self.headline = self.tasks

    @property
    def substitutes(self) -> Mapping[str, str]:
        """None: these samples stand for nothing else."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The split, and a checksum of the texts."""
        return {"split": self.split, "corpora": corpora_digest(self.data)}

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DownloadError when the texts cannot be read."""
        load_corpora(self.data)

    def count_samples(self, task: str, wanted: int | None) -> int:
        """`wanted`, or 400."""
        return SAMPLES if wanted is None else wanted

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """The same samples that `generate` makes for these arguments."""
        corpora = load_corpora(self.data)
        for index in indexes:
            try:
                sample = generate(
                    task,
                    seed=seed,
                    index=index,
                    target_tokens=length,
                    corpora=corpora,
                    tokenizer=tokenizer,
                    split=self.split,
                )
            except ValueError as error:
                yield Skipped(task=task, index=index, length=length, reason=str(error))
                continue
            prompt_ids, answer_ids = render(sample, tokenizer)
            yield SuiteSample(
                task=task,
                index=index,
                length=length,
                category=sample.category,
                prompt=prompt_text(sample, tokenizer),
                prompt_ids=tuple(prompt_ids),
                answers=(sample.answer,),
                max_new_tokens=len(answer_ids),
                target_ids=tuple(answer_ids),
            )

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 or 0 for exact kinds, else the share of right tokens."""
        hits = [said == wanted for said, wanted in zip(answer.token_ids, sample.target_ids, strict=True)]
        return float(all(hits)) if KINDS[sample.task].metric == "exact" else sum(hits) / len(hits)
