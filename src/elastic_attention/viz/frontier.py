"""Quality against sparsity or speed: the routed model beside static, random, dense and all-sparse heads."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .style import PALETTE, QUIET, figure_style, save_figure
from .units import SCORE, Measure, choose_measure, list_rows, read_decode, to_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Style = tuple[str, str]
"""Colour and mark."""

METHODS = {
    "routed": (PALETTE[0], "o"),
    "static": (PALETTE[1], "s"),
    "random": (PALETTE[2], "^"),
    "all_sparse": (PALETTE[6], "X"),
    "dense": (PALETTE[3], "D"),
}
OTHER_MARKS = "vP*<>hpd"
# What the methods above leave of the palette, and more: nobody should take another method for the routed one.
OTHER_COLOURS = (
    *(colour for colour in PALETTE if colour not in {own for own, _ in METHODS.values()}),
    *("#882255", "#999933", "#332288", "#7A5C2E"),
)
SCORE_MARGIN = 0.02
SPARSITIES = {"msr": "model sparsity ratio (MSR)", "esr_prefill": "effective sparsity ratio of prefill (ESR)"}
SPEEDS = {"prefill_speedup": "speed-up of prefill", "decode_speedup": "speed-up of decoding"}


def save_frontier(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the frontier of a quality record into `path` (.png or .svg).

    Args:
        record: `metrics.rows` hold `method` (routed, static, random, dense, all_sparse, any other), `decode` (sparse,
            full), `target`, `budget`, `msr`, `esr_prefill`, `score`, `score_low`, `score_high` (95% interval) and the
            same of `relative_score`, the share of dense; rows that also have `prefill_speedup` and `decode_speedup`
            are drawn against these.
        path: the figure.

    Raises:
        ElasticAttentionError: the record has no row to draw, or the figure cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    save_figure(draw_frontier(list_rows(record)), path)


def draw_frontier(rows: Sequence[Row]) -> "Figure":
    """Draw the score against MSR (left) and prefill ESR (right), or against both speed-ups, with 95% error bars.

    Rows that differ in samples are drawn as their share of the dense score on their own samples.

    Filled marks and full lines are sparse decode, hollow marks and dashed lines full decode. Lines join the rows of a
    method that have a `target`, and those of the routed one that have a `budget`. The score axis ends at the tenths
    around what is drawn.

    Raises:
        ElasticAttentionError: no row has a method, a score, and a place on an axis.
        BackendUnavailable: matplotlib is not installed.
    """
    known = [row for row in rows if row.get("method") and to_number(row.get("score")) is not None]
    is_timed = any(to_number(row.get(key)) is not None for row in known for key in SPEEDS)
    keys = SPEEDS if is_timed else SPARSITIES
    known = [row for row in known if any(to_number(row.get(key)) is not None for key in keys)]
    if not known:
        raise ElasticAttentionError(
            "The record has no rows with 'method', 'score' and 'msr'; pass a quality record (elastic-attn eval)."
        )
    measure, styles = choose_measure(known), _choose_styles([str(row["method"]) for row in known])
    ends = _find_ends(known, measure)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (key, label) in zip(axes, keys.items(), strict=True):
            for method, style in styles.items():
                for decode in ("sparse", "full"):
                    chosen = [row for row in known if row["method"] == method and read_decode(row) == decode]
                    _draw_method(axis, (key, measure), method, style, decode, chosen)
            axis.set_xlabel(label)
            if not is_timed:
                axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(*ends)
        axes[0].set_ylabel(f"{measure[-1]}, 95% interval")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9)
        figure.suptitle(f"Quality against {'speed' if is_timed else 'sparsity'}", x=0.01, ha="left", fontweight="bold")
    return figure


def _choose_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Colour and mark by method; those that every comparison has keep theirs."""
    others = [method for method in dict.fromkeys(methods) if method not in METHODS]
    return {method: style for method, style in METHODS.items() if method in methods} | {
        method: (OTHER_COLOURS[place % len(OTHER_COLOURS)], OTHER_MARKS[place % len(OTHER_MARKS)])
        for place, method in enumerate(others)
    }


def _find_ends(rows: Sequence[Row], measure: Measure) -> tuple[float, float]:
    """Lower and upper end of the score axis: the tenths around all intervals and a margin; no score is above 1."""
    points = [point for row in rows if (point := _read_point(row, measure))]
    lowest = min(score - below for score, below, _ in points) - SCORE_MARGIN
    highest = max(score + above for score, _, above in points) + SCORE_MARGIN
    # Rounded first, since 0.6 times ten may come out a hair below 6.
    low, high = math.floor(round(lowest * 10, 6)) / 10, math.ceil(round(highest * 10, 6)) / 10
    # A little above 1, so that marks there are whole.
    return max(low, 0.0), min(high, 1.02) if measure == SCORE else high


def _draw_method(
    axis: "Axes", place: tuple[str, Measure], method: str, style: Style, decode: str, rows: Sequence[Row]
) -> None:
    points = _sort_points(rows, *place)
    if not points:
        return
    places, scores, below, above = (list(column) for column in zip(*points, strict=True))
    colour, mark = style
    if method == "dense":
        # The dense score is the line that every other point is read against.
        axis.axhline(scores[0], color=QUIET, linestyle=":", linewidth=1.2)
    # A line joins what was trained or drawn for a target, and one router at several budgets; other runs stand alone.
    aimed = _sort_points([row for row in rows if row.get("target") is not None or _has_dial(row)], *place)
    line = "-" if decode == "sparse" else "--"
    axis.plot([point[0] for point in aimed], [point[1] for point in aimed], color=colour, linestyle=line)
    axis.errorbar(
        places,
        scores,
        yerr=[below, above],
        color=colour,
        marker=mark,
        markersize=6,
        markerfacecolor=colour if decode == "sparse" or method == "dense" else "white",
        linestyle="none",
        capsize=3,
        elinewidth=1.1,
        label=f"{method}, full decode" if decode == "full" and method != "dense" else method,
    )


def _has_dial(row: Row) -> bool:
    """Whether the row is of a router whose sparsity was turned without training."""
    return row.get("method") == "routed" and to_number(row.get("budget")) is not None


def _sort_points(rows: Sequence[Row], key: str, measure: Measure) -> list[tuple[float, float, float, float]]:
    """Place, score and the distances to the ends of its interval, from the least sparse row on."""
    return sorted(
        (at, *point)
        for row in rows
        if (at := to_number(row.get(key))) is not None and (point := _read_point(row, measure))
    )


def _read_point(row: Row, measure: Measure) -> tuple[float, float, float] | None:
    """Score and the distances to the ends of its interval, 0 where the interval is missing; None without a score."""
    score, low, high = (to_number(row.get(key)) for key in measure[:3])
    if score is None:
        return None
    return score, 0.0 if low is None else max(0.0, score - low), 0.0 if high is None else max(0.0, high - score)
