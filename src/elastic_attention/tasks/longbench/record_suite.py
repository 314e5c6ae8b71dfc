"""What suites of official records share: files by path, faulty records named, prompts cut to the length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.longbench.cutting import LEAST_TOKENS, fit_prompt
from elastic_attention.tasks.longbench.files import describe_fault, digest_of, find_file, load_records
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Skipped, SuiteSample


class RecordSuite(ABC):
    """A suite whose samples are the records of files, in their order.

    Args:
        data: folder with the files, or the one file.
        max_prompt_tokens: longer prompts lose their middle before the chat template goes around them, as in the
            official code; None = as many as fit the length.

    Attributes:
        source: where users get the files.
        is_joined: how the ends of a cut prompt are put together; see `cut_middle`.
    """

    tasks: tuple[str, ...]
    default_lengths: tuple[int, ...] = ()
    source: str
    is_joined = False

    def __init__(self, name: str, *, data: Path | None, max_prompt_tokens: int | None = None) -> None:
        limit = LEAST_TOKENS if max_prompt_tokens is None else max_prompt_tokens
        if not (isinstance(limit, int) and limit >= LEAST_TOKENS):
            raise DataError(f"max_prompt_tokens={limit!r} must be a number of tokens, {LEAST_TOKENS} or more.")
        self.name, self.data, self.max_prompt_tokens = name, data, max_prompt_tokens

    @abstractmethod
    def file_names(self, task: str) -> tuple[str, ...]:
        """Names under which a task's file may be found."""

    @abstractmethod
    def find_fault(self, task: str, record: dict[str, Any]) -> str | None:
        """What is wrong with a record, or None."""

    @abstractmethod
    def write_prompt(self, task: str, record: Mapping[str, Any]) -> str:
        """The prompt without chat markers."""

    @abstractmethod
    def describe_sample(self, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """What else `SuiteSample` wants to know of a record."""

    def is_chat(self, task: str) -> bool:
        """Does the chat template go around this task's prompts?"""
        return True

    @property
    def substitutes(self) -> Mapping[str, str]:
        """None: only official files are read."""
        return {}

    @property
    def headline(self) -> tuple[str, ...]:
        """All tasks."""
        return self.tasks

    def describe(self) -> dict[str, Any]:
        """The files that are there, by checksum, and where prompts are cut."""
        found = {}
        for task in self.tasks:
            try:
                path = self.find(task)
            except DataError:
                continue
            found[path.name] = digest_of(path)
        return {"files": found, "max_prompt_tokens": self.max_prompt_tokens}

    def find(self, task: str) -> Path:
        """The file of a task. Raises DataError when there is none."""
        return find_file(self.data, self.file_names(task), self.source)

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DataError, naming file and remedy, when the file of a task is missing or holds nothing."""
        for task in tasks:
            load_records(self.find(task))

    def find_least_length(self, task: str) -> int:
        """Unknown: it depends on the tokenizer."""
        return 1

    def count_samples(self, task: str, wanted: int | None) -> int:
        """Records of the task's file, `wanted` at most."""
        found = len(load_records(self.find(task)))
        return found if wanted is None else min(found, wanted)

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """Records of the task's file, counted from 0; `seed` changes nothing.

        Raises:
            DataError: the file cannot be read.
        """
        records = load_records(self.find(task))
        for index in indexes:
            place, record = records[index]
            fault = record if isinstance(record, str) else self.find_fault(task, record)
            if isinstance(record, str) or fault is not None:
                yield Skipped(task=task, index=index, length=length, reason=describe_fault(place, str(fault)))
                continue
            facts = self.describe_sample(task, record)
            try:
                prompt, ids = self.fit(task, record, facts, length, tokenizer)
            except DataError as error:
                yield Skipped(task=task, index=index, length=length, reason=f"{place}: {error}")
                continue
            yield SuiteSample(task=task, index=index, length=length, prompt=prompt, prompt_ids=tuple(ids), **facts)

    def fit(
        self, task: str, record: Mapping[str, Any], facts: Mapping[str, Any], length: int, tokenizer: Tokenizer
    ) -> tuple[str, list[int]]:
        """The prompt as the model reads it, and its tokens; what is too long loses its middle.

        Args:
            facts: of `describe_sample`.

        Raises:
            DataError: `length` leaves no room for it.
        """
        return fit_prompt(
            self.write_prompt(task, record),
            tokenizer,
            task=task,
            length=length,
            max_new_tokens=facts["max_new_tokens"],
            is_chat=self.is_chat(task),
            max_prompt_tokens=self.max_prompt_tokens,
            is_joined=self.is_joined,
        )
