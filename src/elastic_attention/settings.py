"""Strict settings: frozen dataclasses as plain dictionaries, and back from JSON or TOML."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build the configuration class `cls` from `data`; strict.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the key.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a table of keys, got {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        near = {name: difflib.get_close_matches(name, fields, 1) for name in unknown}
        advice = [f" Did you mean {match[0]!r} instead of {name!r}?" for name, match in near.items() if match]
        raise ValueError(f"{where} has unknown keys {unknown}; known keys are {sorted(fields)}.{''.join(advice)}")
    required = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise ValueError(f"{where} misses the keys {missing}; add them.")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if choices := {kind: cls for cls in args if (kind := _find_kind(cls)) is not None}:
            if isinstance(value, dict):
                return _convert_choice(choices, value, where)
            args = tuple(a for a in args if a not in choices.values()) or args
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        name = "list" if expected is tuple else getattr(expected, "__name__", expected)  # as files write it
        raise ValueError(f"{where} must be {name}, got {value!r}.")
    return value


def _find_kind(cls: Any) -> str | None:
    """The word for a dataclass where data may be of several: its `kind`, a written field or a class variable."""
    fields = {item.name: item.default for item in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    kind = fields.get("kind", getattr(cls, "kind", None))
    return kind if isinstance(kind, str) else None


def _convert_choice(choices: dict[str, Any], value: dict[str, Any], where: str) -> Any:
    """The key "kind" names the class; files from before there was a choice have none and mean the first."""
    kind = value.get("kind", next(iter(choices)))
    if kind not in list(choices):  # whatever a file says may not even have a hash
        raise ValueError(f"{where}.kind={kind!r} is unknown here; use one of {sorted(choices)}.")
    return from_dict(choices[kind], {name: item for name, item in value.items() if name != "kind"}, where)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ValueError: the file is no valid TOML; names the file and the line.
        FileNotFoundError: there is no such file.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}. Correct that line, or name a .toml file.") from error
