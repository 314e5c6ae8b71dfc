"""Columns of tables: which keys of the rows they show, under which heading, in which form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .units import (
    format_bytes,
    format_count,
    format_ratio,
    format_seconds,
    format_text,
    format_thousandths,
    format_verdict,
    to_number,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column: the row's key, its heading, and how a value is written. `kind` is its style in the page."""

    key: str
    heading: str
    format: Callable[[object], str]
    kind: str = "number"
    is_optional: bool = False

    def sort_value(self, value: object) -> str:
        """What the page sorts by: the bare number, or the text; empty for a missing value, which goes last."""
        if value is None:
            return ""
        number = float(value) if isinstance(value, bool) else to_number(value)
        return format_text(value).casefold() if number is None else repr(number)


def _mark_stand_in(value: object) -> str:
    """Short, because the page names the data once."""
    return "" if value is None else "stand-in"


DEMO_COLUMNS = (
    Column(key="task", heading="Task", format=format_text, kind="name"),
    Column(key="prompt_tokens", heading="Prompt tokens", format=format_count),
    Column(key="expected", heading="Expected", format=format_text, kind="text"),
    Column(key="answer", heading="Answer", format=format_text, kind="text"),
    Column(key="correct", heading="Verdict", format=format_verdict, kind="verdict"),
    Column(key="correct_dense", heading="Dense verdict", format=format_verdict, kind="verdict", is_optional=True),
    Column(key="msr", heading="MSR", format=format_ratio, kind="ratio"),
    Column(key="esr_prefill", heading="ESR prefill", format=format_ratio, kind="ratio"),
    Column(key="esr_decode", heading="ESR decode", format=format_ratio, kind="ratio"),
    Column(key="prefill_seconds_dense", heading="Prefill dense", format=format_seconds),
    Column(key="prefill_seconds", heading="Prefill elastic", format=format_seconds),
    Column(key="kv_bytes_dense", heading="KV dense", format=format_bytes),
    Column(key="kv_bytes", heading="KV elastic", format=format_bytes),
    Column(key="answer_dense", heading="Dense answer", format=format_text, kind="text", is_optional=True),
)


EVAL_COLUMNS = (
    Column(key="task", heading="Task", format=format_text, kind="label"),
    Column(key="label", heading="Method", format=format_text, kind="label"),
    Column(key="length", heading="Tokens", format=format_count),
    Column(key="index", heading="Sample", format=format_count),
    Column(key="answer", heading="Answer", format=format_text, kind="text"),
    Column(key="group", heading="Group", format=format_text, kind="text"),
    Column(key="value", heading="Of the group", format=format_text, kind="text"),
    Column(key="n", heading="n", format=format_count),
    Column(key="score", heading="Score", format=format_thousandths, kind="ratio"),
    Column(key="score_low", heading="95% from", format=format_thousandths),
    Column(key="score_high", heading="to", format=format_thousandths),
    Column(key="weighted_score", heading="By sample", format=format_thousandths),
    Column(key="relative_score", heading="Of dense", format=format_thousandths),
    Column(key="relative_low", heading="95% from", format=format_thousandths),
    Column(key="relative_high", heading="to", format=format_thousandths),
    Column(key="msr", heading="MSR", format=format_ratio, kind="ratio"),
    Column(key="esr_prefill", heading="ESR prefill", format=format_ratio, kind="ratio"),
    Column(key="esr_decode", heading="ESR decode", format=format_ratio, kind="ratio"),
    Column(key="kv_bytes", heading="KV", format=format_bytes),
    Column(key="kv_bytes_dense", heading="KV dense", format=format_bytes),
    Column(key="prefill_seconds", heading="Prefill", format=format_seconds),
    Column(key="seconds", heading="Seconds", format=format_seconds),
    Column(key="prompt_tokens", heading="Prompt tokens", format=format_count),
    Column(key="cut", heading="Cut", format=format_count),
    Column(key="empty", heading="Empty", format=format_count),
    Column(key="category", heading="Category", format=format_text, kind="text"),
    Column(key="substitute", heading="Data", format=_mark_stand_in, kind="label"),
)
# Said by the label, or shown as a picture.
EVAL_UNSHOWN = {"method", "target", "decode", "routes"}


def pick_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns for `rows`: those of an evaluation where rows have a label and a score, those of the demo where they
    name a task without a length or a reason, and one more for each key that is not covered.

    An optional column appears only if a row has its key.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if {"label", "score"} <= set(keys):
        shown = [column for column in EVAL_COLUMNS if any(row.get(column.key) is not None for row in rows)]
        covered = {column.key for column in EVAL_COLUMNS} | EVAL_UNSHOWN
        shown[0] = replace(shown[0], kind="name")
        return shown + [_guess_column(key, rows) for key in keys if key not in covered]
    if "task" not in keys or {"length", "reason"} & set(keys):
        return [_guess_column(key, rows) for key in keys]
    known = [column for column in DEMO_COLUMNS if column.key in keys or not column.is_optional]
    named = {column.key for column in DEMO_COLUMNS}
    return known + [_guess_column(key, rows) for key in keys if key not in named]


def _guess_column(key: str, rows: Sequence[Mapping[str, Any]]) -> Column:
    """A column for a key without a form of its own, by what its values are."""
    heading = key.replace("_", " ")
    values = [row[key] for row in rows if row.get(key) is not None]
    if values and all(to_number(value) is not None for value in values):
        for unit, form in (("bytes", format_bytes), ("seconds", format_seconds)):
            if unit in key.split("_"):
                return Column(key=key, heading=heading, format=form)
        is_whole = all(isinstance(value, int) for value in values)
        return Column(key=key, heading=heading, format=format_count if is_whole else format_thousandths)
    return Column(key=key, heading=heading, format=format_text, kind="text")
