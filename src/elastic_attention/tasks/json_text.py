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
        ValueError: as in `parse_json` and `check_letters`.
    """
    value = parse_json(path.read_text(encoding="utf-8-sig"))
    check_letters(value)
    return value


def check_letters(value: Any) -> None:
    """Look for halves of surrogate pairs: JSON can write them, and no tokenizer takes them.

    Raises:
        ValueError: there is one.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a text holds {error.object[error.start]!a}, half of a letter") from error
