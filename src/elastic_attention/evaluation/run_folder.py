"""A folder of answers: whose run it holds, and that each part of it is filled by one process at a time."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..locks import hold_folder
from ..records import write_file
from .plan import Shard

RUN_FILE = "run.json"
MAX_DIFFERENCES, MAX_CHARS = 6, 100
_NOTHING = "nothing"


def hold_part(folder: Path, shard: Shard) -> contextlib.AbstractContextManager[None]:
    """Inside, no other process fills this part of the folder, which is made if missing.

    Raises:
        ElasticAttentionError: another process does, or nothing can be written there.
    """
    return hold_folder(
        folder,
        f".answers-{shard.index}-of-{shard.count}.lock",
        taken=f"Another process is answering part {shard.index} of {shard.count} in {folder}. Wait until it is done, "
        "choose another --output, or give every process a part of its own: --shard 0/2 and --shard 1/2.",
        remedy="Name another folder as --output.",
    )


def claim_folder(output: Path, identity: dict[str, Any]) -> None:
    """Note whose answers a folder holds, so that answers of different models or samples never mix.

    Raises:
        ElasticAttentionError: it holds those of another run, or of an unknown one; names what differs, there and now.
    """
    path, text = output / RUN_FILE, json.dumps(identity, indent=2, sort_keys=True, default=str) + "\n"
    # A run writes its file before its first answer.
    if not path.exists() and any(file.stat().st_size for file in output.glob("answers-*.jsonl")):
        raise ElasticAttentionError(
            f"{output} holds answers, but no {RUN_FILE} that says whose they are; choose another --output or remove "
            "that folder."
        )
    if path.exists():
        differences = _list_differences(_read_identity(path), json.loads(text))
        if differences:
            said, left = differences[:MAX_DIFFERENCES], len(differences) - MAX_DIFFERENCES
            raise ElasticAttentionError(
                f"{output} holds answers of another run (other {'; '.join(said)}{f'; {left} more' * (left > 0)}); "
                "choose another --output or remove that folder."
            )
    write_file(path, text)


def _read_identity(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        if isinstance(found, dict):
            return found
    raise ElasticAttentionError(f"{path} is no file of an evaluation; choose another --output or remove that folder.")


def _list_differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Such as "plan.samples: 2 there, 3 now"."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{path}: {_write_value(before)} there, {_write_value(now)} now"]
    return [
        found
        for key in sorted(before.keys() | now.keys())
        for found in _list_differences(
            before.get(key, _NOTHING), now.get(key, _NOTHING), f"{path}.{key}" if path else key
        )
    ]


def _write_value(value: Any) -> str:
    """A JSON value for a reader: of a method its name, then what else it says."""
    if isinstance(value, list):
        text = f"[{', '.join(map(_write_value, value))}]"
    elif isinstance(value, dict):
        facts = {"name": None, **value}.values()
        text = " ".join(dict.fromkeys(_write_value(fact) for fact in facts if fact not in (None, ""))) or "empty"
    else:
        text = "none" if value is None else str(value) or "empty"
    # Folders differ at their end, checksums anywhere.
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS // 2]} … {text[-MAX_CHARS // 2 :]}"
