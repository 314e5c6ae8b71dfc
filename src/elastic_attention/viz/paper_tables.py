"""Tables of the papers' claims, from records of `benchmarks/paper_study.py`."""

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import MISSING, format_count, format_estimate, format_text, list_rows, to_number

Record = Mapping[str, Any]


def render_verdicts(record: Record) -> str:
    """A row a claim: its verdict, how many of the checks behind it hold, and what was trained and asked for it."""
    columns = (
        Column(key="title", heading="Claim", format=format_text),
        Column(key="paper", heading="Of", format=format_text),
        Column(key="claim", heading="Command", format=format_text),
        Column(key="verdict", heading="Verdict", format=format_text),
        Column(key="held", heading="Checks that hold", format=format_text),
        Column(key="steps", heading="Steps trained", format=format_count),
        Column(key="span", heading="Prompt tokens", format=format_text),
        Column(key="n", heading="Answers", format=_format_answers),
    )
    rows = [
        row | {"held": _count_held(record, row["claim"]), "span": _write_span(row.get("lengths"))}
        for row in list_rows(record)
    ]
    return render_markdown(columns, rows)


def render_checks(record: Record) -> str:
    """A row a check: what was found, with its 95% interval, beside what the rule asks."""
    columns = (
        Column(key="claim", heading="Command", format=format_text),
        Column(key="check", heading="Check", format=format_text),
        Column(key="found", heading="Found", format=format_text),
        Column(key="asked", heading="Asked", format=format_text),
        Column(key="result", heading="Holds", format=format_text),
    )
    rows = [
        row
        | {
            "found": format_estimate(row.get("value"), row.get("low"), row.get("high")),
            "asked": _write_asked(row),
            "result": _write_result(row),
        }
        for row in list_rows(record, "checks")
    ]
    return render_markdown(columns, rows)


def _count_held(record: Record, claim: str) -> str:
    held = [row["holds"] for row in list_rows(record, "checks") if row["claim"] == claim and row["counts"]]
    return f"{sum(held)} of {len(held)}" if held else MISSING


def _write_span(lengths: object) -> str:
    if not isinstance(lengths, list) or not lengths:
        return MISSING
    ends = dict.fromkeys((min(lengths), max(lengths)))
    return " to ".join(format_count(end) for end in ends)


def _format_answers(value: object) -> str:
    return format_count(value) if value else MISSING


def _write_asked(row: Mapping[str, Any]) -> str:
    low, high = to_number(row.get("at_least")), to_number(row.get("at_most"))
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    bound = low if high is None else high
    if bound is None:
        return MISSING
    # Bounds beside zero stand for an interval that lies on one side of it.
    side = "above" if high is None else "below"
    return f"{side} 0" if abs(bound) < 1e-6 else f"{'≥' if high is None else '≤'} {bound:g}"


def _write_result(row: Mapping[str, Any]) -> str:
    beside = "" if row.get("counts", True) else ", beside"
    return ("yes" if row.get("holds") else "no" if row.get("refuted") else "undecided") + beside
