"""Markdown tables: cells that cannot break out of their column, and the line that says where the numbers come from."""

import re
from collections.abc import Mapping
from typing import Any

from .units import format_commit, format_seconds, format_text

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")


class MarkdownTable:
    """A table with a fixed heading; the first column is aligned left, the others right."""

    def __init__(self, *headings: str) -> None:
        """Start a table with these column headings."""
        self._headings = headings
        self._rows: list[tuple[str, ...]] = []

    def add(self, *cells: str) -> None:
        """Add a row of one cell a heading.

        Raises:
            ValueError: the number of cells differs from the number of headings.
        """
        if len(cells) != len(self._headings):
            raise ValueError(f"A row of {len(cells)} cells does not fit {len(self._headings)} headings.")
        self._rows.append(cells)

    def render(self) -> str:
        """The table as Markdown, without a newline at its end."""
        rule = "|".join([":--", *["--:"] * (len(self._headings) - 1)])
        lines = [self._join(self._headings), f"|{rule}|", *map(self._join, self._rows)]
        return "\n".join(lines)

    @staticmethod
    def _join(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(escape_markdown(cell.strip()) for cell in cells) + " |"


def escape_markdown(text: str) -> str:
    """`text` in one line, so that neither Markdown nor HTML reads anything into it."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def render_caption(record: Mapping[str, Any]) -> str:
    """One line under a table: command, model, device, samples, seed, time, commit and date of the record."""
    package = record.get("package") or {}
    commit = f" ({format_commit(package['commit'])})" if package.get("commit") else ""
    facts = [
        f"elastic-attn {record.get('command')}",
        format_text(record.get("model")),
        format_text(record.get("device")),
        f"n {format_text(record.get('n'))}",
        f"seed {format_text(record.get('seed'))}",
        f"{format_seconds(record.get('seconds'))} in all",
        f"version {format_text(package.get('version'))}{commit}",
        str(record.get("created") or "")[:10],
    ]
    return "<sub>" + escape_markdown(" · ".join(fact for fact in facts if fact)) + "</sub>"
