"""Quality against sparsity or speed: the routed model beside static, random, dense and all-sparse heads."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .style import PALETTE, QUIET, figure_style, save_figure
from .units import list_rows, to_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Style = tuple[str, str, str]
"""Name, colour and mark."""

METHODS = {
    "routed": ("routed", PALETTE[0], "o"),
    "static": ("static heads", PALETTE[1], "s"),
    "random": ("random heads", PALETTE[2], "^"),
    "all_sparse": ("all sparse", PALETTE[6], "X"),
    "dense": ("dense", PALETTE[3], "D"),
}
OTHER_MARKS = "vP*<>hpd"
SPARSITIES = {"msr": "model sparsity ratio (MSR)", "esr_prefill": "effective sparsity ratio of prefill (ESR)"}
SPEEDS = {"prefill_speedup": "speed-up of prefill", "decode_speedup": "speed-up of decoding"}


def save_frontier(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the frontier of a quality record into `path` (.png or .svg).

    Args:
        record: `metrics.rows` hold `method` (routed, static, random, dense, all_sparse, any other), `decode` (sparse,
            full), `target`, `msr`, `esr_prefill`, `score`, `score_low`, `score_high` (95% interval); rows that also
            have `prefill_speedup` and `decode_speedup` are drawn against these.
        path: the figure.

    Raises:
        ElasticAttentionError: the record has no such row, or the figure cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    save_figure(draw_frontier(list_rows(record)), path)


def draw_frontier(rows: Sequence[Row]) -> "Figure":
    """Draw the score against MSR (left) and prefill ESR (right), or against both speed-ups, with 95% error bars.

    Filled marks and full lines are sparse decode, hollow marks and dashed lines full decode. Lines join the rows
    that have a `target`.

    Raises:
        ElasticAttentionError: no row has a known method and a score.
        BackendUnavailable: matplotlib is not installed.
    """
    known = [row for row in rows if row.get("method") and to_number(row.get("score")) is not None]
    styles = _choose_styles([str(row["method"]) for row in known])
    if not known:
        raise ElasticAttentionError(
            "The record has no rows with 'method' and 'score'; pass a quality record (elastic-attn eval)."
        )
    is_timed = any(to_number(row.get(key)) is not None for row in known for key in SPEEDS)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (key, label) in zip(axes, (SPEEDS if is_timed else SPARSITIES).items(), strict=True):
            for method, style in styles.items():
                for decode in ("sparse", "full"):
                    chosen = [row for row in known if row["method"] == method and row.get("decode", "sparse") == decode]
                    _draw_method(axis, key, method, style, decode, chosen)
            axis.set_xlabel(label)
            if not is_timed:
                axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("mean score, 95% interval")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9)
        figure.suptitle(f"Quality against {'speed' if is_timed else 'sparsity'}", x=0.01, ha="left", fontweight="bold")
    return figure


def _choose_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Name, colour and mark by method; those that every comparison has keep theirs."""
    others = [method for method in dict.fromkeys(methods) if method not in METHODS]
    return {method: style for method, style in METHODS.items() if method in methods} | {
        method: (method.replace("_", " "), PALETTE[place % len(PALETTE)], OTHER_MARKS[place % len(OTHER_MARKS)])
        for place, method in enumerate(others)
    }


def _draw_method(axis: "Axes", key: str, method: str, style: Style, decode: str, rows: Sequence[Row]) -> None:
    points = _sort_points(rows, key)
    if not points:
        return
    places, scores, below, above = (list(column) for column in zip(*points, strict=True))
    name, colour, mark = style
    if method == "dense":
        # The dense score is the line that every other point is read against.
        axis.axhline(scores[0], color=QUIET, linestyle=":", linewidth=1.2)
    # A line joins what was trained or drawn for a target; other runs stand alone.
    aimed = _sort_points([row for row in rows if row.get("target") is not None], key)
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
        label=f"{name}, full decode" if decode == "full" and method != "dense" else name,
    )


def _sort_points(rows: Sequence[Row], key: str) -> list[tuple[float, float, float, float]]:
    """Place, score and the distances to the ends of its interval, from the least sparse row on."""
    return sorted(
        (at, score, *_error(row, score))
        for row in rows
        if (at := to_number(row.get(key))) is not None and (score := to_number(row["score"])) is not None
    )


def _error(row: Row, score: float) -> tuple[float, float]:
    """Distances from the score to the ends of its interval; 0 where the interval is missing."""
    low, high = to_number(row.get("score_low")), to_number(row.get("score_high"))
    return (max(0.0, score - low) if low is not None else 0.0, max(0.0, high - score) if high is not None else 0.0)
