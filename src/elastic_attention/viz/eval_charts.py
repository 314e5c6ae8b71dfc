"""What a record with methods and scores shows as charts: quality against what is skipped, and against length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Chart, Point, Series, draw_chart
from .speed_charts import draw_speeds
from .units import (
    SCORE,
    Measure,
    choose_measure,
    format_decimal,
    format_ratio,
    format_text,
    list_rows,
    read_decode,
    to_number,
)

Row = Mapping[str, Any]
_OF_THIS_RUN = (
    "Seconds of the base model to the first token over those of the method: means of this run, what a method compiles "
    "for its first batches included. Benchmarks time with more care."
)


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
    if len(timed := _compare_seconds(rows)) > 1:
        charts.append(_draw_speed_trade(timed))
    timed = _compare_seconds(by_length)
    if len({row["length"] for row, _ in timed}) > 1:
        charts.append(_draw_prefills(timed))
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
    measure = choose_measure(rows)
    return draw_chart(
        _group_methods([(row, row["esr_prefill"]) for row in rows], measure),
        title="Quality against what is skipped",
        note="Higher and further right is better; the line joins what nothing beats in both. Hollow marks read all "
        "keys while decoding. Bars are 95% intervals.",
        x_label="share of query-key pairs that prefill skipped (ESR)",
        y_label=measure[-1],
    )


def _draw_speed_trade(timed: Sequence[tuple[Row, float]]) -> Chart:
    measure = choose_measure([row for row, _ in timed])
    return draw_chart(
        _group_methods(timed, measure),
        title="Quality against speed",
        note=f"Over all lengths together; bars are 95% intervals. {_OF_THIS_RUN}",
        x_label="speed-up of prefill",
        y_label=measure[-1],
    )


def _group_methods(rows: Sequence[tuple[Row, float]], measure: Measure) -> list[Series]:
    """(row, x) as points in the colour of their method, and the line through what nothing beats."""
    points = [(format_text(row.get("method")), _make_point(row, x, measure)) for row, x in rows]
    names = list(dict.fromkeys(name for name, _ in points))
    series = [Series(name=name, points=[point for other, point in points if other == name]) for name in names]
    return [*series, Series(name="", points=find_front([point for _, point in points]), is_joined=True)]


def _draw_lengths(rows: Sequence[Row]) -> Chart:
    points: dict[str, list[Point]] = {}
    for row in rows:
        points.setdefault(name_row(row), []).append(_make_point(row, row["length"]))
    return draw_chart(
        [Series(name=name, points=own, is_joined=True) for name, own in points.items()],
        title="Quality against length",
        note="Every task counts the same. Bars are 95% intervals.",
        x_label="tokens of prompt and answer",
        y_label="score",
        is_x_log=True,
    )


def _compare_seconds(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Rows with how much sooner the first token comes than that of the base model at the same length."""
    timed = [row for row in rows if _has_numbers(row, "prefill_seconds") and row["prefill_seconds"] > 0]
    dense = {row.get("length"): row["prefill_seconds"] for row in timed if row.get("method") == "dense"}
    return [(row, dense[row.get("length")] / row["prefill_seconds"]) for row in timed if row.get("length") in dense]


def _draw_prefills(timed: Sequence[tuple[Row, float]]) -> Chart:
    points: dict[str, list[Point]] = {}
    for row, factor in timed:
        told = f"{name_row(row)}, {row['length']:,} tokens: {format_decimal(factor, 2)} ×"
        points.setdefault(name_row(row), []).append(Point(x=row["length"], y=factor, title=told))
    return draw_chart(
        [Series(name=name, points=own, is_joined=True) for name, own in points.items()],
        title="Speed-up of prefill against length",
        note=_OF_THIS_RUN,
        x_label="tokens of prompt and answer",
        y_label="speed-up",
        is_x_log=True,
        is_y_log=True,
    )


def _make_point(row: Row, x: float, measure: Measure = SCORE) -> Point:
    key, low, high, name = measure
    where = f"MSR {format_ratio(row.get('msr'))}, ESR {format_ratio(row.get('esr_prefill'))}"
    return Point(
        x=float(x),
        y=float(row[key]),
        title=f"{name_row(row)}: {name} {format_decimal(row[key], 3)}, {where}",
        low=to_number(row.get(low)),
        high=to_number(row.get(high)),
        is_hollow=read_decode(row) == "full",
    )


def _has_numbers(row: Row, *keys: str) -> bool:
    return all(to_number(row.get(key)) is not None for key in keys)
