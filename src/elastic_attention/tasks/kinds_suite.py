"""The project's own held-out samples as suites: those of `tasks.KINDS` and others, scored by the answer's tokens."""

from __future__ import annotations

from dataclasses import replace

from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.corpora_suite import CorporaSuite, with_marks
from elastic_attention.tasks.registry import ALL_KINDS, KINDS, MIN_TOKENS, PAIRS, VALIDATION_KINDS, generate
from elastic_attention.tasks.ruler.scoring import match_part
from elastic_attention.tasks.sample import Tokenizer, prompt_text, render
from elastic_attention.tasks.suite import Answer, SuiteSample

# A chat may answer in a whole sentence.
LONGEST_ANSWER = 32


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

    def find_least_length(self, task: str) -> int:
        """That of `generate`, for every kind."""
        return MIN_TOKENS

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 or 0 for exact kinds, else the share of right tokens."""
        hits = [said == wanted for said, wanted in zip(answer.token_ids, sample.target_ids, strict=True)]
        return float(all(hits)) if ALL_KINDS[sample.task].metric == "exact" else sum(hits) / len(hits)

    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        """The same sample that `generate` makes for these arguments."""
        tokenizer = with_marks(tokenizer)
        sample = generate(
            task,
            seed=seed,
            index=index,
            target_tokens=length,
            corpora=load_corpora(self.data),
            tokenizer=tokenizer,
            split=self.split,
        )
        prompt_ids, answer_ids = render(sample, tokenizer)
        return SuiteSample(
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


class PairsSuite(KindsSuite):
    """Held-out samples of the kinds that share their texts in pairs; asked and scored as in `KindsSuite`."""

    tasks = headline = tuple(PAIRS)
    default_samples = 100


class ValidationSuite(KindsSuite):
    """Facts that no training has, to choose steps and targets by; right where the answer occurs in what is said."""

    tasks = headline = tuple(VALIDATION_KINDS)
    default_samples = 100

    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        """As in `KindsSuite`; the model speaks for itself."""
        sample = super()._build_sample(task, index, length, seed, tokenizer)
        return replace(sample, target_ids=(), max_new_tokens=LONGEST_ANSWER)

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 if the answer stands in what the model said, else 0."""
        return match_part(answer.text, [reference.strip() for reference in sample.answers])
