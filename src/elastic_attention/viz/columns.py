"""Columns of tables: which keys of the rows they show, under which heading, in which form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .units import (
    format_bytes,
    format_count,
    format_decimal,
    format_ratio,
    format_seconds,
    format_text,
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


def pick_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns for `rows`: those of the demo where rows name a task, and one more for each key that they do not cover.

    An optional column appears only if a row has its key.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if "task" not in keys:
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
        return Column(key=key, heading=heading, format=format_count if is_whole else _format_three_digits)
    return Column(key=key, heading=heading, format=format_text, kind="text")


def _format_three_digits(value: object) -> str:
    return format_decimal(value, 3)
