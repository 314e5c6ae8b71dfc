"""The official data files: found by path, read line by line, every record checked before a model sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.json_text import find_half_letter, parse_json
from elastic_attention.tasks.packages import sha256_of

Found = dict[str, Any] | str
"""A record, or what is wrong with it."""


def find_file(data: Path | None, names: Sequence[str], source: str) -> Path:
    """The first of `names` in the folder `data` or in its subfolder "data"; `data` may be the file itself.

    Args:
        source: where users get the files, for the message.

    Raises:
        DataError: there is no such file; names what was looked for.
    """
    if data is None:
        raise DataError(f"this suite needs official files; name the folder that holds {names[0]} ({source}).")
    if data.is_file() and data.name in names:
        return data
    for folder in (data, data / "data"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise DataError(f"{data} holds no {' or '.join(names)}; put the file there ({source}), or leave its task out.")


@lru_cache(maxsize=2)
def load_records(path: Path) -> tuple[tuple[str, Found], ...]:
    """`read_records`, kept for the next call."""
    return read_records(path)


def read_records(path: Path) -> tuple[tuple[str, Found], ...]:
    """(place such as "hotpotqa.jsonl, line 3", record or what is wrong with it), of a JSON-lines file or a JSON list.

    Raises:
        DataError: the file cannot be read, or holds no record at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = tuple(_read_list(path.name, text) if path.suffix == ".json" else _read_lines(path.name, text))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read ({error}); fetch the official file again.") from error
    if not any(isinstance(record, dict) for _, record in found):
        raise DataError(f"{path.name} holds no record; fetch the official file again.")
    return found


@lru_cache(maxsize=64)
def digest_of(path: Path) -> str:
    """The sha256 of a data file; read once."""
    return sha256_of(path)


def find_fault(record: Any, **kinds: type | tuple[type, ...]) -> str | None:
    """What is wrong with the keys of a record, or None: every key must be there and of its kind."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__} instead of a record"
    for key, kind in kinds.items():
        if key not in record:
            return f"the key {key!r} is missing"
        if not isinstance(record[key], kind):
            return f"{key!r} is {type(record[key]).__name__}"
    return None


def describe_fault(place: str, fault: str) -> str:
    """Why a record is skipped: where it stands, what is wrong with it, and the remedy."""
    return f"{place}: {fault}; repair or remove it."


def _read_lines(name: str, text: str) -> Iterator[tuple[str, Found]]:
    for number, line in enumerate(text.split("\n"), 1):  # texts may hold other marks that Python takes for line ends
        if not line.strip():
            continue
        try:
            yield f"{name}, line {number}", _check_table(parse_json(line))
        except ValueError as error:
            yield f"{name}, line {number}", f"no JSON ({error})"


def _read_list(name: str, text: str) -> Iterator[tuple[str, Found]]:
    rows = parse_json(text)
    if not isinstance(rows, list):
        raise ValueError(f"a {type(rows).__name__} instead of a list")
    for number, row in enumerate(rows, 1):
        yield f"{name}, record {number}", _check_table(row)


def _check_table(value: Any) -> Found:
    fault = find_fault(value) or find_half_letter(value)
    return value if fault is None else fault
