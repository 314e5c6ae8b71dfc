"""When routes are decided, and what that changes: the record of `benchmarks/policy_agreement.py`."""

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import format_count, format_estimate, format_text, format_thousandths, list_rows


def render_policies(record: Mapping[str, Any]) -> str:
    """A row a way to decide: routes that are the exact way's, and the score of the known answer, with 95% intervals."""
    columns = (
        Column(key="way", heading="Decided", format=format_text),
        Column(key="n", heading="n", format=format_count),
        Column(key="msr", heading="MSR", format=format_thousandths),
        Column(key="agreement", heading="Same routes", format=format_text),
        Column(key="score", heading="Score", format=format_thousandths),
        Column(key="difference", heading="Against one piece", format=format_text),
    )
    rows = [row | {key: _write(row, key) for key in ("agreement", "difference")} for row in list_rows(record)]
    return render_markdown(columns, rows)


def _write(row: Mapping[str, Any], key: str) -> str:
    return format_estimate(row[key], row[f"{key}_low"], row[f"{key}_high"])
