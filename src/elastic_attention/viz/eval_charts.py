"""What a record with methods and scores shows as charts: quality against what is skipped, and against length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Chart, Point, Series, draw_chart
from .speed_charts import draw_speeds
from .units import format_decimal, format_ratio, format_text, list_rows, to_number

Row = Mapping[str, Any]


def build_charts(record: Mapping[str, Any]) -> list[Chart]:
    """The charts that the rows of a record allow; none for records of other kinds."""
    charts = []
    rows = [row for row in list_rows(record) if _has_numbers(row, "score", "esr_prefill")]
    if len({name_row(row) for row in rows}) > 1:
        charts.append(_draw_trade(rows))
    by_length = [row for row in list_rows(record, "by_length") if _has_numbers(row, "score", "length")]
    by_length = [row for row in by_length if row["length"] > 0]
    if len({row["length"] for row in by_length}) > 1:
        charts.append(_draw_lengths(by_length))
    return [*charts, *draw_speeds(list_rows(record))]


def find_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both, x and y, where more of either is better; in the order of x."""
    return [
        point
        for point in sorted(points, key=lambda p: (p.x, p.y))
        if not any(
            other.x >= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y) for other in points
        )
    ]


def name_row(row: Row) -> str:
    """The method of a row: its label, or name and target."""
    if row.get("label"):
        return format_text(row["label"])
    target = to_number(row.get("target"))
    return format_text(row.get("method")) + ("" if target is None else f"@{target:.2f}")


def _draw_trade(rows: Sequence[Row]) -> Chart:
    points = [(format_text(row.get("method")), _make_point(row, "esr_prefill")) for row in rows]
    names = list(dict.fromkeys(name for name, _ in points))
    series = [Series(name=name, points=[point for other, point in points if other == name]) for name in names]
    front = find_front([point for _, point in points])
    return draw_chart(
        [*series, Series(name="", points=front, is_joined=True)],
        title="Quality against what is skipped",
        note="Higher and further right is better; the line joins what nothing beats in both. Hollow marks read all "
        "keys while decoding. Bars are 95% intervals.",
        x_label="share of query-key pairs that prefill skipped (ESR)",
        y_label="score",
    )


def _draw_lengths(rows: Sequence[Row]) -> Chart:
    names = list(dict.fromkeys(name_row(row) for row in rows))
    return draw_chart(
        [
            Series(name=n, points=[_make_point(row, "length") for row in rows if name_row(row) == n], is_joined=True)
            for n in names
        ],
        title="Quality against length",
        note="Every task counts the same. Bars are 95% intervals.",
        x_label="tokens of prompt and answer",
        y_label="score",
        is_x_log=True,
    )


def _make_point(row: Row, x: str) -> Point:
    score = format_decimal(row["score"], 3)
    where = f"MSR {format_ratio(row.get('msr'))}, ESR {format_ratio(row.get('esr_prefill'))}"
    return Point(
        x=float(row[x]),
        y=float(row["score"]),
        title=f"{name_row(row)}: score {score}, {where}",
        low=to_number(row.get("score_low")),
        high=to_number(row.get("score_high")),
        is_hollow=row.get("decode") == "full",
    )


def _has_numbers(row: Row, *keys: str) -> bool:
    return all(to_number(row.get(key)) is not None for key in keys)
