"""How the values of a record become text, in pages, tables and pictures alike."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"


def to_number(value: object) -> float | None:
    """`value` as a finite float, or None if it is no number (missing, text, bool, not finite)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def format_count(value: object) -> str:
    """A whole number with thousands separators: `4,096`."""
    number = to_number(value)
    return MISSING if number is None else f"{number:,.0f}"


def format_ratio(value: object) -> str:
    """A ratio in [0, 1] with two digits: `0.72`."""
    return format_decimal(value, 2)


def format_decimal(value: object, digits: int) -> str:
    """A number with a fixed count of digits after the point."""
    number = to_number(value)
    return MISSING if number is None else f"{number:,.{digits}f}"


def format_tenths(value: object) -> str:
    """A number with one digit after the point: `0.7`."""
    return format_decimal(value, 1)


def format_thousandths(value: object) -> str:
    """A number with three digits after the point: `0.718`."""
    return format_decimal(value, 3)


def format_percent(value: object, digits: int = 0) -> str:
    """A ratio as per cent: `72%`."""
    number = to_number(value)
    return MISSING if number is None else f"{number * 100:.{digits}f}%"


def format_seconds(value: object) -> str:
    """Seconds with three significant digits: `0.123 s`, `4.56 s`, `128 s`."""
    number = to_number(value)
    if number is None:
        return MISSING
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:,.{digits}f} s"


def format_bytes(value: object) -> str:
    """Bytes with a binary unit: `94.4 MiB`."""
    number = to_number(value)
    if number is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def format_interval(low: object, high: object, digits: int = 2) -> str:
    """A confidence interval: `[0.95, 0.99]`, or nothing where one end is missing."""
    if to_number(low) is None or to_number(high) is None:
        return ""
    return f"[{format_decimal(low, digits)}, {format_decimal(high, digits)}]"


def format_estimate(value: object, low: object, high: object) -> str:
    """A value in three digits with its confidence interval: `0.718 [0.700, 0.731]`."""
    if to_number(value) is None:
        return MISSING
    return f"{format_thousandths(value)} {format_interval(low, high, 3)}".rstrip()


def format_verdict(value: object) -> str:
    """`right`, `wrong`, or the mark of a missing value."""
    return MISSING if value is None else "right" if value else "wrong"


def format_text(value: object) -> str:
    """Any record value in one line: text as it is, a mapping by its `name` or its entries, a list joined by commas."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, Mapping):
        if value.get("name"):
            return format_text(value["name"])
        return ", ".join(f"{key} {format_text(entry)}" for key, entry in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(format_text(entry) for entry in value) or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else MISSING
    return str(value)


def format_commit(value: object) -> str:
    """A commit in nine digits, with `-dirty` where the sources differed from it."""
    if not isinstance(value, str):
        return MISSING
    return value[:9] + ("-dirty" if value.endswith("-dirty") else "")


def format_command(value: object) -> str:
    """The command of a record as one types it: `elastic-attn demo`, or `python FILE` for a benchmark script."""
    command = format_text(value)
    return f"python {command}" if command.endswith(".py") else f"elastic-attn {command}"


Measure = tuple[str, str, str, str]
"""Keys of a figure and of the ends of its interval in a row, and its name."""
SCORE: Measure = ("score", "score_low", "score_high", "mean score")
SHARE: Measure = ("relative_score", "relative_low", "relative_high", "share of the dense score")


def choose_measure(rows: Sequence[Mapping[str, Any]]) -> Measure:
    """What a picture compares: scores, or shares of dense on a row's own samples where rows differ in these."""
    has_shares = all(to_number(row.get(SHARE[0])) is not None for row in rows)
    return SHARE if has_shares and len({row.get("n") for row in rows}) > 1 else SCORE


def read_decode(row: Mapping[str, Any]) -> str:
    """How a method decoded: "full" also where it has no other way, which older rows do not say."""
    has_all_keys = row.get("esr_decode") == 0 and row.get("msr")
    return "full" if has_all_keys else row.get("decode") or "sparse"


def describe_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """A method's row for a table: `score_text` and `relative_text` with their intervals, and how it decoded.

    `decode` is that of `read_decode`, and None for the dense model.
    """
    return {
        **row,
        "decode": None if row.get("method") == "dense" else read_decode(row),
        "score_text": format_estimate(row.get("score"), row.get("score_low"), row.get("score_high")),
        "relative_text": format_estimate(row.get("relative_score"), row.get("relative_low"), row.get("relative_high")),
    }


def list_rows(record: Mapping[str, Any], name: str = "rows") -> list[dict[str, Any]]:
    """The rows under `metrics.<name>` of a record; an empty list where there are none."""
    rows = record.get("metrics", {}).get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
