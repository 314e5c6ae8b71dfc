"""Charts inside the page: numbers become places in a small drawing that the template writes as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 26, 26, 36
NUM_TICKS, NUM_COLOURS = 5, 7
SHAPES = ("circle", "square", "diamond")  # of marks, once the colours are used up


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measured value, with its interval where there is one, and what it says when it is pointed at."""

    x: float
    y: float
    title: str
    low: float | None = None
    high: float | None = None
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one colour.

    Attributes:
        name: in the legend; without one the line alone is drawn.
        is_joined: a line runs through the points in the order of x.
        has_marks: every point has its mark; False for curves of very many points.
        band: from and to, a range of y behind the curve in its colour.
        is_dashed: the line is.
        colour: its number; None = the place of the series.
    """

    name: str
    points: Sequence[Point]
    is_joined: bool = False
    has_marks: bool = True
    band: tuple[float, float] | None = None
    is_dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point in the drawing, in its units; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    title: str
    is_hollow: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A series in the drawing.

    Attributes:
        colour: its number.
        shape: of its marks, one of `SHAPES`.
        path: the line as an SVG path, "" for none.
        band: top and height of the range behind it, None for none.
    """

    name: str
    colour: int
    shape: str
    marks: list[Mark]
    path: str
    band: tuple[float, float] | None
    is_dashed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with its axes; ticks are (place, text)."""

    title: str
    note: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """From `low` to `high`, on a logarithmic scale where lengths double."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """Place of a value, 0 at the low end and 1 at the high one."""
        low, high, value = (math.log2(v) if self.is_log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def draw_chart(
    series: Sequence[Series],
    *,
    title: str,
    note: str,
    x_label: str,
    y_label: str,
    is_x_log: bool = False,
    is_y_log: bool = False,
) -> Chart:
    """Place series on axes that hold them all.

    Args:
        is_x_log: x are lengths; ticks stand at the values that there are.
        is_y_log: y are positive ratios; ticks stand at powers of two.
    """
    points = [point for one in series for point in one.points]
    xs, ys = [p.x for p in points], [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    ys += [end for one in series for end in one.band or ()]
    x_axis = Axis(low=min(xs), high=max(xs), is_log=True) if is_x_log else _fit_axis(xs)
    y_axis = _fit_powers(ys) if is_y_log else _fit_axis(ys)

    def place_x(value: float) -> float:
        return round(LEFT + x_axis.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(value: float) -> float:
        return round(TOP + (1 - y_axis.share(value)) * (HEIGHT - TOP - BOTTOM), 1)

    curves = []
    for number, one in enumerate(series):
        ordered = sorted(one.points, key=lambda point: point.x)
        marks = [
            Mark(
                x=place_x(p.x),
                y=place_y(p.y),
                low=place_y(p.y if p.low is None else p.low),
                high=place_y(p.y if p.high is None else p.high),
                title=p.title,
                is_hollow=p.is_hollow,
            )
            for p in ordered
        ]
        path = "M" + " L".join(f"{mark.x} {mark.y}" for mark in marks) if one.is_joined and len(marks) > 1 else ""
        place = number if one.colour is None else one.colour
        band = None
        if one.band is not None:
            top, bottom = place_y(max(one.band)), place_y(min(one.band))
            band = top, max(round(bottom - top, 1), 2.0)
        curves.append(
            Curve(
                name=one.name,
                colour=place % NUM_COLOURS,
                shape=SHAPES[place // NUM_COLOURS % len(SHAPES)],
                marks=marks if one.has_marks else [],
                path=path,
                band=band,
                is_dashed=one.is_dashed,
            )
        )
    x_values = sorted(set(xs)) if is_x_log else _list_ticks(x_axis)
    return Chart(
        title=title,
        note=note,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(place_x(value), f"{value:,.0f}" if is_x_log else f"{value:g}") for value in x_values],
        y_ticks=[
            (place_y(value), f"{value:g}") for value in (_list_powers(y_axis) if is_y_log else _list_ticks(y_axis))
        ],
        curves=curves,
    )


def _fit_axis(values: Sequence[float]) -> Axis:
    """Round ends around the values."""
    low, high = min(values), max(values)
    step = _choose_step(high - low or abs(high) or 1.0)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    return Axis(low=first, high=last if last > first else first + step)


def _fit_powers(values: Sequence[float]) -> Axis:
    """Powers of two around the values."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    return Axis(low=2.0**low, high=2.0 ** max(high, low + 1), is_log=True)


def _list_powers(axis: Axis) -> list[float]:
    low, high = round(math.log2(axis.low)), round(math.log2(axis.high))
    return [2.0**power for power in range(low, high + 1, -(-(high - low) // (2 * NUM_TICKS)))]


def _choose_step(span: float) -> float:
    """The round number that cuts a span into about five parts."""
    rough = span / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if rough <= factor * power * (1 + 1e-9))


def _list_ticks(axis: Axis) -> list[float]:
    step = _choose_step(axis.high - axis.low)
    count = round((axis.high - axis.low) / step)
    return [round(axis.low + i * step, 10) for i in range(count + 1)]
