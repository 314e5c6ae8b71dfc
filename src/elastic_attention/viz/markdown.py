"""Markdown tables: cells that cannot break out of their column, and the line that says where the numbers come from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .columns import Column
from .units import MISSING, format_command, format_commit, format_seconds, format_text

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_SPLITS = {"heldout": "held-out texts", "heldout_format": "held-out texts and wordings"}


def render_markdown(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table without a newline at its end; the first column stands left, the others right."""
    rule = "|".join([":--", *["--:"] * (len(columns) - 1)])
    lines = [_join([column.heading for column in columns]), f"|{rule}|"]
    lines += [_join([column.format(row.get(column.key)) for column in columns]) for row in rows]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """`text` in one line, so that neither Markdown nor HTML reads anything into it."""
    plain = " ".join(text.split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        plain = plain.replace(sign, entity)
    return _SPECIAL.sub(r"\\\1", plain)


def render_caption(record: Mapping[str, Any]) -> str:
    """One line under a table: command, model, suites, device, samples, seed, time, version and date, where known."""
    package = record.get("package") or {}
    facts = (
        ("{}", format_command(record.get("command"))),
        ("{}", format_text(record.get("model"))),
        ("{}", format_suites(record.get("data"))),
        ("{}", format_text(record.get("device"))),
        ("n {}", format_text(record.get("n"))),
        ("seed {}", format_text(record.get("seed"))),
        ("{} in all", format_seconds(record.get("seconds"))),
        ("version {}", format_text(package.get("version"))),
        ("commit {}", format_commit(package.get("commit"))),
        ("{}", str(record.get("created") or MISSING)[:10]),
    )
    known = [form.format(fact) for form, fact in facts if fact != MISSING]
    return f"<sub>{escape_markdown(' · '.join(known))}</sub>"


def format_suites(data: object) -> str:
    """The suites of a record's data, and what training kept away from: "mixture, held-out texts; ruler"."""
    if not isinstance(data, Mapping):
        return MISSING
    suites = {data.get("suite", "mixture"): data} if {"suite", "split"} & data.keys() else data
    told = []
    for name, facts in suites.items():
        if isinstance(facts, Mapping) and {"split", "corpora", "files"} & facts.keys():
            split = _SPLITS.get(str(facts.get("split")))
            told.append(f"{name}, {split}" if split else str(name))
    return "; ".join(told) or MISSING


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell.strip()) for cell in cells) + " |"
