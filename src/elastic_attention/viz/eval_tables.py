"""Markdown tables of an evaluation: tasks down and methods across, and one row a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import escape_markdown, render_markdown
from .units import (
    describe_scores,
    format_bytes,
    format_count,
    format_ratio,
    format_text,
    format_thousandths,
    list_rows,
    to_number,
)

Record = Mapping[str, Any]


def render_eval_tasks(record: Record) -> str:
    """Score by task, length and method; a star and a line below mark data that stood in for an official source."""
    columns, cells = pivot_tasks(record)
    means = {f"score {format_text(row.get('label'))}": row.get("score") for row in list_rows(record)}
    total = sum(to_number(cell.get("n")) or 0 for cell in cells)
    mean = {"task": "mean of tasks", "length": None, "n": total, **means}
    return render_markdown(columns, [*cells, mean]) + _list_stand_ins(record)


def pivot_tasks(record: Record) -> tuple[list[Column], list[dict[str, Any]]]:
    """Tasks and lengths down, methods across: the columns and the rows."""
    rows = list_rows(record, "by_task")
    labels = list(dict.fromkeys(format_text(row.get("label")) for row in rows))
    columns = [
        Column(key="task", heading="Task", format=format_text, kind="name"),
        Column(key="length", heading="Tokens", format=format_count),
        Column(key="n", heading="n", format=format_count),
        *(Column(key=f"score {label}", heading=label, format=format_thousandths, kind="ratio") for label in labels),
    ]
    cells: dict[tuple[str, Any], dict[str, Any]] = {}
    for row in rows:
        name = format_text(row.get("task")) + ("*" if row.get("substitute") else "")
        cell = cells.setdefault((name, row.get("length")), {"task": name, "length": row.get("length")})
        cell |= {"n": row.get("n"), f"score {format_text(row.get('label'))}": row.get("score")}
    return columns, list(cells.values())


def render_eval_methods(record: Record) -> str:
    """One row a method: score and its share of dense with 95% intervals, sparsity of prefill and decoding, bytes."""
    columns = (
        Column(key="label", heading="Method", format=format_text),
        Column(key="decode", heading="Decode", format=format_text),
        Column(key="n", heading="n", format=format_count),
        Column(key="score_text", heading="Score", format=format_text),
        Column(key="relative_text", heading="Of dense", format=format_text),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="esr_prefill", heading="ESR prefill", format=format_ratio),
        Column(key="esr_decode", heading="ESR decode", format=format_ratio),
        Column(key="kv_bytes", heading="KV", format=format_bytes),
        Column(key="kv_bytes_dense", heading="KV dense", format=format_bytes),
    )
    return render_markdown(columns, [describe_scores(row) for row in list_rows(record)]) + _list_stand_ins(record)


def _list_stand_ins(record: Record) -> str:
    names = record.get("metrics", {}).get("substitutes") or {}
    by_name: dict[str, list[str]] = {}
    for task, name in names.items():
        by_name.setdefault(format_text(name), []).append(format_text(task))
    said = "; ".join(f"{', '.join(tasks)}: {name}" for name, tasks in by_name.items())
    note = escape_markdown(f"* data that stands in for the official source: {said}")
    return f"\n\n<sub>{note}</sub>" if said else ""
