"""JSON out of data files that others made."""

import json
from pathlib import Path
from typing import Any


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: as in `parse_json`, or a text holds half of a letter.
    """
    value = parse_json(path.read_text(encoding="utf-8-sig"))
    if (fault := find_half_letter(value)) is not None:
        raise ValueError(fault)
    return value


def find_half_letter(value: Any) -> str | None:
    """What is wrong with the texts of a JSON value, or None.

    JSON can write halves of surrogate pairs, and no tokenizer takes them.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a text holds {error.object[error.start]!a}, half of a letter"
    return None
