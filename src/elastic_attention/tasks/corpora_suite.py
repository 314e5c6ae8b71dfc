"""What suites that are drawn from the project's own texts have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import corpora_digest, load_corpora
from elastic_attention.tasks.drawing import SPLITS
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Skipped, SuiteSample, has_chat_template, make_or_skip


class CorporaSuite(ABC):
    """Samples without end from texts; a subclass makes and scores them. See `Suite` for what the methods promise.

    Args:
        data: folder of `tasks.corpora`; None takes the small texts in the package.
        split: one that training never sees; None takes the suite's own.
    """

    default_split: ClassVar[str]
    default_samples: ClassVar[int]

    def __init__(self, name: str, *, data: Path | None = None, split: str | None = None) -> None:
        split = self.default_split if split is None else split
        if split not in SPLITS[1:]:
            raise DataError(f"split={split!r} is unknown; use {' or '.join(SPLITS[1:])}.")
        self.name, self.data, self.split = name, data, split

    @property
    def substitutes(self) -> Mapping[str, str]:
        """None: these samples stand in for nothing else."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The split, and a checksum of the texts."""
        return {"split": self.split, "corpora": corpora_digest(self.data)}

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DownloadError when the texts are missing or damaged."""
        load_corpora(self.data)

    def count_samples(self, task: str, wanted: int | None) -> int:
        """`wanted`, or the suite's own number."""
        return self.default_samples if wanted is None else wanted

    def find_least_length(self, task: str) -> int:
        """Unknown: it depends on the tokenizer."""
        return 1

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """Samples that `_build_sample` makes, or why it cannot."""
        return make_or_skip(self._build_sample, task, indexes, length=length, seed=seed, tokenizer=tokenizer)

    @abstractmethod
    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        """One sample; raises DataError where the texts cannot give it."""


class _UnmarkedTokenizer:
    """A tokenizer without a chat template, with one that adds nothing."""

    chat_template = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool, tokenize: bool) -> Any:
        return "\n".join(message["content"] for message in messages)


@lru_cache(maxsize=4)
def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that can write a conversation; one object each, because texts are kept per tokenizer."""
    return tokenizer if has_chat_template(tokenizer) else _UnmarkedTokenizer(tokenizer)
