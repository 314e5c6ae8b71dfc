"""The project's own held-out samples as a suite: every kind of `tasks.KINDS`, scored by the tokens of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.corpora_suite import CorporaSuite, with_marks
from elastic_attention.tasks.registry import KINDS, generate
from elastic_attention.tasks.sample import Tokenizer, prompt_text, render
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample


class KindsSuite(CorporaSuite):
    """Held-out samples; see `Suite` for what its methods promise.

    The answer's tokens are given, and the model says what it would have put at each place. An "exact" kind scores 1
    when that is the answer throughout, which is when greedy decoding would have produced it; "token_accuracy" kinds
    score the share of places. `length` bounds the prompt alone, as in training.

    Args:
        data: folder of `tasks.corpora`; None takes the texts in the package.
        split: "heldout", or "heldout_format" for a wording that training never sees.
    """

    tasks = headline = tuple(KINDS)
    default_lengths = (1024, 2048)
    default_split = "heldout"
    default_samples = 400

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """The same samples that `generate` makes for these arguments."""
        corpora, tokenizer = load_corpora(self.data), with_marks(tokenizer)
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
