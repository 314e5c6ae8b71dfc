"""One training record, strictly checked: a long context, a question, an answer, and a category."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import DataError

TEXT_KEYS = ("context", "question", "answer", "category")
KEYS = (*TEXT_KEYS, "metadata")
_KNOWN_METADATA = {"task": str, "answer_prefix": str, "is_chat": bool}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """What a training sample is made of.

    Attributes:
        context, question: the user's turn; one of them may be empty.
        answer: the text whose tokens are the response; never empty.
        category: decides which interval of the recipe holds for the sample.
        metadata: free, but for three keys: `task` (name of a finer kind, else the category), `answer_prefix` (text
            at the start of the assistant's turn that is part of the prompt, else "") and `is_chat` (False: one plain
            text without chat template; else True).
    """

    context: str
    question: str
    answer: str
    category: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Name of the finer kind."""
        return self.metadata.get("task", self.category)

    @property
    def answer_prefix(self) -> str:
        """Text of the assistant's turn that belongs to the prompt."""
        return self.metadata.get("answer_prefix", "")

    @property
    def is_chat(self) -> bool:
        """Whether the chat template is applied."""
        return self.metadata.get("is_chat", True)


def check_keys(names: list[str], where: str) -> None:
    """Compare the keys of a row or the columns of a table with those of a record.

    Raises:
        DataError: a key is missing or unknown; `where` opens the message.
    """
    if missing := [key for key in TEXT_KEYS if key not in names]:
        raise DataError(f"{where}: misses {missing}; a record needs {list(TEXT_KEYS)} and may have 'metadata'.")
    if unknown := sorted(set(names) - set(KEYS)):
        raise DataError(f"{where}: has unknown keys {unknown}; move them into 'metadata' or drop them.")


def check_record(row: Any, where: str) -> TrainingRecord:
    """Turn a parsed row into a record.

    Args:
        row: a mapping with the record's keys; `metadata` may be missing, None, a mapping or the JSON of one.
        where: file and line, opens every message.

    Raises:
        DataError: a key is missing or unknown, a value has the wrong type or no UTF-8 form, the answer or the
            category is empty, or context and question both are.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a record is an object with the keys {list(TEXT_KEYS)}, not {row!r:.60}.")
    check_keys([str(key) for key in row], where)
    for key in TEXT_KEYS:
        _check_text(row[key], key, where)
    for key in ("answer", "category"):
        if not row[key].strip():
            raise DataError(f"{where}: {key!r} is empty; fill it in or remove the record.")
    if not (row["context"].strip() or row["question"].strip()):
        raise DataError(f"{where}: 'context' and 'question' are both empty; fill one in or remove the record.")
    return TrainingRecord(**{key: row[key] for key in TEXT_KEYS}, metadata=_check_metadata(row.get("metadata"), where))


def _check_text(value: Any, key: str, where: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be text, got {value!r:.60}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {key!r} holds half a character at position {error.start}; write it as whole UTF-8 text."
        ) from error


def _check_metadata(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: 'metadata' is text but no JSON ({error}); write an object.") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: 'metadata' must be an object, got {value!r:.60}.")
    # Tables fill a key that a row lacks with None.
    metadata = {str(key): item for key, item in value.items() if item is not None}
    for key, kind in _KNOWN_METADATA.items():
        if key in metadata and not isinstance(metadata[key], kind):
            raise DataError(f"{where}: 'metadata.{key}' must be {kind.__name__}, got {metadata[key]!r:.60}.")
        if isinstance(metadata.get(key), str):
            _check_text(metadata[key], f"metadata.{key}", where)
    return metadata
