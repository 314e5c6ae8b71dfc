"""Records: the one JSON form in which every command leaves its result.

A record says what ran (command, config, package version and commit, seed), on what (model, data, device, library
versions) and what came out (metrics, seconds, bytes). Tables, pictures and reports are made from records only.
"""

import contextlib
import dataclasses
import json
import math
import numbers
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import ElasticAttentionError

Record = dict[str, Any]

DISTRIBUTION = "elastic-attention"
REQUIRED_KEYS = (
    "command", "config", "package", "model", "data", "versions", "device", "seed", "n", "metrics", "seconds", "bytes",
    "created",
)  # fmt: skip
GIT_TIMEOUT_SECONDS = 5.0


def build_record(
    command: str,
    *,
    config: object,
    model: object,
    data: object,
    device: str,
    seed: int | None,
    n: int,
    metrics: Mapping[str, Any],
    seconds: float,
    bytes: int | None,
) -> Record:
    """Build the record of one finished command.

    Args:
        command: name of the command, for example `"demo"`.
        config: its settings; a mapping or a configuration dataclass.
        model: name of the model, or a mapping with at least `name`.
        data: name or description of the data.
        device: the device in words.
        seed: the seed, or None where nothing was drawn.
        n: number of samples measured.
        metrics: the results; table rows are a list of mappings under `rows`.
        seconds: wall time of the command.
        bytes: peak memory of the command, None where it was not measured.

    Returns:
        A dict of plain JSON values. Numbers that are not finite become None.

    Raises:
        ElasticAttentionError: a value has no JSON form, or `metrics["rows"]` is not a list of mappings.
    """
    record = {
        "command": command,
        "config": config,
        "package": {"name": DISTRIBUTION, "version": __version__, "commit": _read_commit()},
        "model": model,
        "data": data,
        "versions": {
            "python": platform.python_version(),
            "torch": _installed_version("torch"),
            "transformers": _installed_version("transformers"),
        },
        "device": device,
        "seed": seed,
        "n": n,
        "metrics": metrics,
        "seconds": seconds,
        "bytes": bytes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    plain = {key: _to_json_value(value, key) for key, value in record.items()}
    _check_record(plain, f"the record of {command!r}")
    return plain


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as JSON; parent folders are created, and the file appears whole or not at all.

    Raises:
        ElasticAttentionError: the record lacks a key or holds a value without a JSON form, `path` is a folder,
            or the disk refuses the file. An older file at `path` is then unchanged.
    """
    plain = {str(key): _to_json_value(value, str(key)) for key, value in record.items()}
    _check_record(plain, "the record")
    write_file(path, json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read and check a record.

    Raises:
        ElasticAttentionError: the file cannot be read, is not JSON, or is not a record; the message says which.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ElasticAttentionError(
            f"Cannot read the record {path}: {error.strerror or error}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ElasticAttentionError(f"{path} is not UTF-8 text, so it is not a record. Check the path.") from error
    try:
        record = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ElasticAttentionError(
            f"{path} is not valid JSON ({error}). It may be cut off; run its command again with --json."
        ) from error
    _check_record(record, str(path))
    return record


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` atomically; parent folders are created.

    The content goes to a temporary name in the same folder, is flushed to the disk and then takes the final name.

    Raises:
        ElasticAttentionError: `path` is a folder or a device, or the system refuses the file (disk full, not allowed).
            An older file at `path` is then unchanged and nothing half-written is left.
    """
    # A link is followed, so that the file behind it changes and the link stays.
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise ElasticAttentionError(f"Cannot write {path}: it is {kind}. Name a file.")
    # Model output may hold lone surrogates, which UTF-8 cannot hold.
    payload = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ElasticAttentionError(
            f"Cannot write {path} ({len(payload)} bytes): {error.strerror or error}. "
            "Free some space or choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_record(record: object, name: str) -> None:
    if not isinstance(record, dict):
        raise ElasticAttentionError(
            f"{name} holds {type(record).__name__} instead of a JSON object; it is not a record."
        )
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ElasticAttentionError(
            f"{name} is not a whole record: {', '.join(missing)} missing. Run its command again with --json."
        )
    for key in ("package", "versions", "metrics"):
        if not isinstance(record[key], dict):
            raise ElasticAttentionError(f"{name}: {key!r} must be an object, got {record[key]!r:.80}.")
    if not isinstance(record["command"], str):
        raise ElasticAttentionError(f"{name}: 'command' must be text, got {record['command']!r:.80}.")
    rows = record["metrics"].get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ElasticAttentionError(f"{name}: 'metrics.rows' must be a list of objects, got {rows!r:.80}.")


def _to_json_value(value: Any, where: str) -> Any:
    """Turn mappings, sequences, dataclasses, paths and number types of any library into plain JSON values."""
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _to_json_value(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ElasticAttentionError(
        f"A record cannot hold {where} = {value!r:.80} of type {type(value).__name__}. "
        "Pass numbers, text, lists or mappings."
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read_commit() -> str | None:
    """The commit of the checkout that this package runs from; None if it was installed. `-dirty`: its sources differ.

    Where the sources were copied without their history, ELASTIC_ATTENTION_COMMIT may name the commit.
    """
    if given := os.environ.get("ELASTIC_ATTENTION_COMMIT"):
        return given
    package = Path(__file__).resolve().parent
    answer = _run_git(package, "rev-parse", "--show-toplevel", "HEAD")
    if answer is None:
        return None
    top, _, commit = answer.partition("\n")
    # A package installed into somebody else's checkout must not report that checkout's commit.
    if Path(top).resolve() / "src" / package.name != package:
        return None
    # Only the sources count: writing results next to them does not change what ran.
    changes = _run_git(package, "status", "--porcelain", "--", ".")
    return commit if changes == "" else f"{commit}-dirty"


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
