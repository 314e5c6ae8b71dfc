"""RULER as a suite: thirteen tasks with the published knobs, at any length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import corpora_digest
from elastic_attention.tasks.packages import sha256_of
from elastic_attention.tasks.ruler import haystack, questions, templates
from elastic_attention.tasks.ruler.counting import CommonKnobs, FrequentKnobs, draft_common, draft_frequent
from elastic_attention.tasks.ruler.draft import Draft, find_size
from elastic_attention.tasks.ruler.library import draft_question
from elastic_attention.tasks.ruler.niah import NiahKnobs, draft_niah
from elastic_attention.tasks.ruler.scoring import match_all, match_part
from elastic_attention.tasks.ruler.templates import Template
from elastic_attention.tasks.ruler.tracking import TrackingKnobs, draft_tracking
from elastic_attention.tasks.ruler.words import digest_words
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample, has_chat_template, make_or_skip, render_prompt

Knobs = NiahKnobs | TrackingKnobs | CommonKnobs | FrequentKnobs | str
OFFICIAL_SAMPLES = 500
PLACEMENTS = ("assistant", "user")
FILES = (haystack.ESSAYS, *questions.FILES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerTask:
    """A task: its group of templates, its category in tables, and its knobs (of questions: the data set's name)."""

    template: Template
    category: str
    knobs: Knobs


def _needles(category: str, **knobs: Any) -> RulerTask:
    return RulerTask(template=templates.NIAH, category=category, knobs=NiahKnobs(**knobs))


TASKS: dict[str, RulerTask] = {
    "niah_single_1": _needles("single needle", haystack="noise"),
    "niah_single_2": _needles("single needle"),
    "niah_single_3": _needles("single needle", value="uuids"),
    "niah_multikey_1": _needles("several needles", num_keys=4),
    "niah_multikey_2": _needles("several needles", haystack="needle"),
    "niah_multikey_3": _needles("several needles", haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": _needles("several needles", num_values=4),
    "niah_multiquery": _needles("several needles", num_queries=4),
    "vt": RulerTask(template=templates.VARIABLES, category="tracing", knobs=TrackingKnobs()),
    "cwe": RulerTask(template=templates.COMMON_WORDS, category="aggregation", knobs=CommonKnobs()),
    "fwe": RulerTask(template=templates.FREQUENT_WORDS, category="aggregation", knobs=FrequentKnobs()),
    "qa_1": RulerTask(template=templates.QUESTION, category="questions", knobs="squad"),
    "qa_2": RulerTask(template=templates.QUESTION, category="questions", knobs="hotpotqa"),
}


class RulerSuite:
    """RULER; see `Suite` for what its methods promise.

    Args:
        data: folder with the official files PaulGrahamEssays.json, squad.json and hotpotqa.json, as RULER's own
            downloads leave them; what is not there is stood in for by name.
        corpora: folder of `tasks.corpora` that the stand-ins come from; None takes the texts in the package.
        prefix: where the beginning of the answer stands: at the start of the "assistant" turn, as published, or at the
            end of the "user" turn, for interfaces that let nobody begin the answer.
    """

    default_lengths = (4096, 8192, 16384, 32768)

    def __init__(
        self, name: str, *, data: Path | None = None, corpora: str | None = None, prefix: str = "assistant"
    ) -> None:
        if prefix not in PLACEMENTS:
            raise DataError(f"prefix={prefix!r} is unknown; use {' or '.join(PLACEMENTS)}.")
        self.name, self.data, self.corpora, self.prefix = name, data, corpora, prefix
        self.tasks = tuple(TASKS)
        self.headline = self.tasks

    @property
    def substitutes(self) -> Mapping[str, str]:
        """task -> name of what stands in for its official source."""
        found = {}
        for name, task in TASKS.items():
            if isinstance(task.knobs, str):
                if not questions.has_questions(task.knobs, self.data):
                    found[name] = questions.SUBSTITUTES[task.knobs]
            elif _needs_essays(task.knobs) and not haystack.has_essays(self.data):
                found[name] = haystack.SUBSTITUTE
        return found

    def describe(self) -> dict[str, Any]:
        """Placement of the prefix, and checksums of the data."""
        present = {name: self.data / name for name in FILES if self.data is not None and (self.data / name).is_file()}
        return {
            "prefix": self.prefix,
            "files": {name: sha256_of(path) for name, path in present.items()},
            "corpora": corpora_digest(self.corpora),
            "words": digest_words(),
        }

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DataError when one of the data folder's files or the word list cannot be read, or it holds no file."""
        if self.data is not None and not self.data.is_dir():
            raise DataError(f"{self.data} is no folder; name one with {', '.join(FILES)}.")
        # A misspelt name would go unseen: what is asked would be stand-ins, and not what the user means.
        if self.data is not None and not any((self.data / name).is_file() for name in FILES):
            raise DataError(
                f"{self.data} holds none of {', '.join(FILES)}; name the folder where RULER's own download scripts "
                "left them, or leave --data out for stand-ins."
            )
        digest_words()
        for name in tasks:
            knobs = TASKS[name].knobs
            if isinstance(knobs, str):
                questions.load_library(knobs, self.data, self.corpora)
            elif _needs_essays(knobs):
                haystack.load_haystack(self.data, self.corpora)

    def count_samples(self, task: str, wanted: int | None) -> int:
        """`wanted`, or 500 as published; no more than there are questions."""
        knobs, count = TASKS[task].knobs, OFFICIAL_SAMPLES if wanted is None else wanted
        if isinstance(knobs, str):
            return min(count, len(questions.load_library(knobs, self.data, self.corpora).questions))
        return count

    def find_least_length(self, task: str) -> int:
        """Unknown: it depends on the tokenizer."""
        return 1

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """Samples as long as `length` allows: one more unit of haystack would not fit."""
        return make_or_skip(self._build_sample, task, indexes, length=length, seed=seed, tokenizer=tokenizer)

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """Share of references in the answer; for questions whether any is."""
        is_part_enough = TASKS[sample.task].template.is_part_enough
        return (match_part if is_part_enough else match_all)(answer.text, sample.answers)

    def draft(self, task: str, index: int, *, length: int, seed: int, tokenizer: Tokenizer) -> Draft:
        """A sample before its size is settled."""
        rng, knobs = random.Random(f"{seed}/ruler/{task}/{length}/{index}"), TASKS[task].knobs
        if isinstance(knobs, NiahKnobs):
            essays = haystack.load_haystack(self.data, self.corpora) if knobs.haystack == "essay" else None
            return draft_niah(knobs, rng, essays)
        if isinstance(knobs, TrackingKnobs):
            return draft_tracking(knobs, rng, lambda text: _count_tokens(tokenizer, text))
        if isinstance(knobs, CommonKnobs):
            return draft_common(knobs, rng, length)
        if isinstance(knobs, FrequentKnobs):
            return draft_frequent(knobs, rng, length)
        return draft_question(questions.load_library(knobs, self.data, self.corpora), index, rng)

    def render(self, draft: Draft, num_units: int, tokenizer: Tokenizer) -> tuple[str, list[int]]:
        """The prompt with so many units of haystack, and its tokens."""
        text = draft.write(num_units)
        if self.prefix == "user" and has_chat_template(tokenizer):
            return render_prompt(tokenizer, text + draft.answer_prefix)
        return render_prompt(tokenizer, text, answer_prefix=draft.answer_prefix)

    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        max_new_tokens = TASKS[task].template.max_new_tokens
        draft = self.draft(task, index, length=length, seed=seed, tokenizer=tokenizer)
        size = find_size(
            lambda n: len(self.render(draft, n, tokenizer)[1]), smallest=draft.smallest, limit=length - max_new_tokens
        )
        prompt, ids = self.render(draft, size, tokenizer)
        return SuiteSample(
            task=task,
            index=index,
            length=length,
            category=TASKS[task].category,
            prompt=prompt,
            prompt_ids=tuple(ids),
            answers=draft.answers,
            max_new_tokens=max_new_tokens,
            details={"units": size},
        )


def _needs_essays(knobs: Knobs) -> bool:
    return isinstance(knobs, NiahKnobs) and knobs.haystack == "essay"


def _count_tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
