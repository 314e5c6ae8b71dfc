"""The answers of a run as JSON lines, whole batches at a time, so that a run that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..records import write_file
from ..tasks.suite import Skipped, SuiteSample
from .asking import Reply
from .plan import Batch, Shard

Key = tuple[str, str, int, int]
"""Method, task, length, index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One sample under one method: what was asked (by checksum), what was answered, and what it cost.

    Attributes:
        skipped: why the sample could not be made, else empty; nothing else says anything then.
        prompt_sha256: of the prompt's text, its first 16 digits.
        routes: as `readers.write_routes` writes them.
        seconds, prefill_seconds: share of this sample in its batch.
    """

    method: str
    task: str
    length: int
    index: int
    skipped: str = ""
    category: str = ""
    groups: dict[str, str] | None = None
    prompt_sha256: str = ""
    prompt_tokens: int = 0
    answer: str = ""
    new_tokens: int = 0
    is_cut: bool = False
    score: float = 0.0
    msr: float = 0.0
    esr_prefill: float | None = None
    esr_decode: float | None = None
    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    routes: str = ""
    prefill_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        """What tells lines apart."""
        return self.method, self.task, self.length, self.index


def make_line(method: str, sample: SuiteSample, reply: Reply, score: float) -> Line:
    """The line of an answered sample."""
    return Line(
        method=method,
        task=sample.task,
        length=sample.length,
        index=sample.index,
        category=sample.category,
        groups=dict(sample.groups),
        prompt_sha256=hashlib.sha256(sample.prompt.encode("utf-8", errors="replace")).hexdigest()[:16],
        prompt_tokens=len(sample.prompt_ids),
        answer=reply.answer.text,
        new_tokens=len(reply.answer.token_ids),
        is_cut=reply.is_cut,
        score=float(score),
        prefill_seconds=reply.prefill_seconds,
        seconds=reply.prefill_seconds + reply.decode_seconds,
        **reply.books,
    )


def make_skipped_line(method: str, skipped: Skipped) -> Line:
    """The line of a sample that could not be made."""
    return Line(method=method, task=skipped.task, length=skipped.length, index=skipped.index, skipped=skipped.reason)


class AnswerLog:
    """The lines in a folder: all files are read, the shard's own one is written."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / f"answers-{shard.index}-of-{shard.count}.jsonl"
        # Written anew, because a killed run may have left half a line at the end.
        kept = {line.key: line for line in read_lines(self.path)}
        write_file(self.path, "".join(map(_write_line, kept.values())))
        self.done = read_answers(folder)

    def has(self, method: str, batch: Batch) -> bool:
        """Has the method answered the whole batch?"""
        return all((method, batch.task, batch.length, index) in self.done for index in batch.indexes)

    def add(self, lines: Sequence[Line]) -> None:
        """Append the lines of a batch and put them on the disk."""
        with self.path.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write("".join(map(_write_line, lines)))
            stream.flush()
            os.fsync(stream.fileno())
        self.done |= {line.key: line for line in lines}


def read_answers(folder: Path) -> dict[Key, Line]:
    """The lines of all shards, whose files stay as they are: their runs may be writing them."""
    return {line.key: line for path in sorted(folder.glob("answers-*.jsonl")) for line in read_lines(path)}


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; half a line left by a killed run is ignored.

    Raises:
        ElasticAttentionError: a line is damaged, or of another version; names file, line and remedy.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [_read_line(text, f"{path}, line {number}") for number, text in enumerate(texts, 1)]


def _read_line(text: str, place: str) -> Line:
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _explain_damage(place, str(error)) from error
    if not isinstance(fields, dict):
        raise _explain_damage(place, "it is no table of keys")
    odd, lacking = sorted(fields.keys() - _TYPES.keys()), sorted(_NEEDED - fields.keys())
    if odd or lacking:
        raise ElasticAttentionError(
            f"{place} was written by another version: this one "
            f"{f'knows no {odd[0]!r}' if odd else f'needs {lacking[0]!r}'}. Go on with that version, or choose another "
            "--output."
        )
    for key, value in fields.items():
        if type(value) not in _TYPES[key]:
            raise _explain_damage(place, f"{key} is {value!r:.40}")
    line = Line(**fields)
    if not 0 <= line.score <= 1:
        raise _explain_damage(place, f"score is {line.score}, it is from 0 to 1")
    if any(type(value) is not str for value in (line.groups or {}).values()):
        raise _explain_damage(place, f"groups is {line.groups!r:.40}")
    return line


def _explain_damage(place: str, reason: str) -> ElasticAttentionError:
    return ElasticAttentionError(
        f"{place} is damaged: {reason:.80}. Remove that line; the same command then asks its question again."
    )


def _list_types(hint: Any) -> tuple[type, ...]:
    """The types that JSON gives for a field of `Line`."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(part) or part for part in parts) + (int,) * (float in parts)


_TYPES = {name: _list_types(hint) for name, hint in typing.get_type_hints(Line).items() if name != "key"}
_NEEDED = {"method", "task", "length", "index"}


def _write_line(line: Line) -> str:
    return json.dumps(asdict(line)) + "\n"
