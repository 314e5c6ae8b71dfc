"""Charts of benchmark records: how much faster than the dense kernel, against length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import NUM_COLOURS, Chart, Point, Series, draw_chart
from .units import format_decimal, format_ratio, format_text, to_number

Row = Mapping[str, Any]


def draw_speeds(rows: Sequence[Row]) -> list[Chart]:
    """Speed-up against length, of rows with tokens, speedup and msr.

    One chart; where it would hold too many curves, one for each MSR or for each kernel, whichever are fewer. Left to
    the tables are the dense kernels themselves and what was measured at one length alone.
    """
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        has_numbers = all(to_number(row.get(key)) is not None for key in ("tokens", "speedup", "msr"))
        is_dense = row.get("is_dense") is True or row.get("kernel") == row.get("best_dense", "")
        if has_numbers and row["tokens"] > 0 and row["speedup"] > 0 and not is_dense:
            cells.setdefault((_name_kernel(row), format_ratio(row["msr"])), []).append(row)
    cells = {cell: own for cell, own in sorted(cells.items()) if len({row["tokens"] for row in own}) > 1}
    kernels, ratios = ({cell[place]: None for cell in cells} for place in (0, 1))
    title = "Speed-up against length"
    if not cells:
        return []
    if len(cells) <= NUM_COLOURS:
        return [_draw({f"{kernel}, MSR {ratio}": own for (kernel, ratio), own in cells.items()}, title)]
    if len(kernels) < len(ratios):
        return [
            _draw({f"MSR {r}": own for (k, r), own in cells.items() if k == one}, f"{title}: {one}") for one in kernels
        ]
    colours = {kernel: number for number, kernel in enumerate(kernels)}
    return [
        _draw({k: own for (k, r), own in cells.items() if r == one}, f"{title}, MSR {one}", colours) for one in ratios
    ]


def _draw(curves: Mapping[str, Sequence[Row]], title: str, colours: Mapping[str, int] | None = None) -> Chart:
    """Rows by name; a kernel may have its colour in all charts."""
    series = []
    for name, rows in curves.items():
        told = [f"{name}, {row['tokens']:,} tokens: {format_decimal(row['speedup'], 2)} ×" for row in rows]
        points = [Point(x=row["tokens"], y=row["speedup"], title=text) for row, text in zip(rows, told, strict=True)]
        series.append(Series(name=name, points=points, is_joined=True, colour=(colours or {}).get(name)))
    note = "Times the dense kernel of the same run."
    return draw_chart(
        series, title=title, note=note, x_label="tokens", y_label="speed-up", is_x_log=True, is_y_log=True
    )


def _name_kernel(row: Row) -> str:
    """What is timed: model and kernel, and what else tells rows of one length apart."""
    parts = [row.get("model"), row.get("kernel") or row.get("backend") or "elastic", row.get("pair")]
    batch = to_number(row.get("batch"))
    if row.get("density") is not None:
        parts.append(f"density {format_ratio(row['density'])}")
    if batch is not None and batch > 1:
        parts.append(f"batch {batch:.0f}")
    return ", ".join(format_text(part) for part in parts if part)
