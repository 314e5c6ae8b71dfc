"""The scores of an evaluation for the terminal: methods across while they fit, else one row a method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .units import MISSING

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]

MAX_ACROSS = 4
"""Methods that stand side by side in 80 columns."""
_TITLE = "Score; * marks data that stands in for the official source"


def build_score_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """What `elastic-attn eval` prints of the metrics of its record, for `console.print` of rich.

    Up to four methods: one table, tasks down and methods across, the mean with its interval and what was saved below.
    More: one row a method, in a table of the tasks, one of the means and one of the sparsity.
    """
    labels = [row["label"] for row in metrics["rows"]]
    quality, sparsity = _list_quality(metrics, labels), _list_sparsity(metrics["rows"])
    if len(labels) <= MAX_ACROSS:
        return [_build_wide(metrics["by_task"], labels, quality + sparsity)]
    return [
        _build_tasks(metrics["by_task"], labels),
        _build_tall("\nMean of the tasks, and its share of the dense score", labels, quality),
        _build_tall("\nShare of sparse heads (MSR) and of pairs that are not read (ESR)", labels, sparsity),
    ]


def _build_wide(by_task: Sequence[Row], labels: Sequence[str], summary: Sequence[tuple[str, list[str]]]) -> Table:
    table = _open_table(_TITLE, ["task", "tokens", "n", *labels])
    for task, length, found in _group_tasks(by_task):
        table.add_row(task, length, str(next(iter(found.values()))["n"]), *_list_scores(found, labels))
    table.add_row()
    for name, cells in summary:
        table.add_row(name, "", "", *cells)
    return table


def _build_tasks(by_task: Sequence[Row], labels: Sequence[str]) -> Table:
    """A row for each task, length and method; what is the same as above is left out."""
    table = _open_table(_TITLE, ["task", "tokens", "n", "method", "score"])
    for task, length, found in _group_tasks(by_task):
        named = [task, length, str(next(iter(found.values()))["n"])]
        for label, score in zip(labels, _list_scores(found, labels), strict=True):
            table.add_row(*named, label, score)
            named = ["", "", ""]
    return table


def _build_tall(title: str, labels: Sequence[str], summary: Sequence[tuple[str, list[str]]]) -> Table:
    # As narrow as the numbers below them.
    headings = [textwrap.fill(name, 6, break_long_words=False) for name, _ in summary]
    table = _open_table(title, ["method", *headings])
    for label, *cells in zip(labels, *(cells for _, cells in summary), strict=True):
        table.add_row(label, *cells)
    return table


def _open_table(title: str, names: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("task", "method") else "right", overflow="fold")
    return table


def _group_tasks(by_task: Sequence[Row]) -> list[tuple[str, str, dict[str, Row]]]:
    """Name, tokens, and row by label of every task and length, in the order of the record."""
    cells: dict[tuple[str, int], dict[str, Row]] = {}
    for row in by_task:
        cells.setdefault((row["task"] + "*" * (row["substitute"] is not None), row["length"]), {})[row["label"]] = row
    return [(task, f"{length:,}", found) for (task, length), found in cells.items()]


def _list_scores(found: Mapping[str, Row], labels: Sequence[str]) -> list[str]:
    return [_format_number(found[label]["score"] if label in found else None) for label in labels]


def _list_quality(metrics: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Mean and share of dense with their intervals: name, and one cell a method."""
    rows = metrics["rows"]
    lines = [
        ("mean", [f"{row['score']:.3f}" for row in rows]),
        ("95%", [_format_interval(row, "score") for row in rows]),
    ]
    for name, relative in (("of dense", rows), ("of dense ≥ .50", metrics["mastered_rows"])):
        if any(row["relative_score"] is not None for row in relative):
            found = {row["label"]: row for row in relative}
            lines.append((name, [_format_number(found[label]["relative_score"]) for label in labels]))
            lines.append(("95%", [_format_interval(found[label], "relative") for label in labels]))
    return lines


def _list_sparsity(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    names = (("MSR", "msr"), ("ESR prefill", "esr_prefill"), ("ESR decode", "esr_decode"))
    return [(name, [_format_number(row[key]) for row in rows]) for name, key in names]


def _format_number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _format_interval(row: Row, name: str) -> str:
    """Of the score or of the ratio to dense, whose end is unknown where resamples of dense have nothing right."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None and row["score_low"] is None:
        return MISSING  # too few samples for any
    ends = ["?" if end is None or not math.isfinite(end) else f"{end:.2f}" for end in (low, high)]
    return "–".join(ends)
