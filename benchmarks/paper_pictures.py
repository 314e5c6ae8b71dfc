"""Pictures of the papers' claims from their records.

    python benchmarks/paper_pictures.py --results results --figures docs/figures

For each model with records: `paper_MODEL.svg` (sparsity against quality, as in the paper's figures 2, 7 and 8) and
`paper_MODEL_checks.svg` (every check with its interval and its bounds).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_recipes import SCALES

from elastic_attention.records import read_record
from elastic_attention.viz.style import INK, PALETTE, QUIET, figure_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
KINDS = {"sensitive": PALETTE[0], "robust": PALETTE[1]}


def draw_panels(found: dict[str, list[Row]]) -> Figure | None:
    """What there is of: retained quality by static MSR, quality by ESR, separation by target. None for nothing."""
    panels = {name: draw for name, draw in PANELS.items() if found.get(name)}
    if not panels:
        return None
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
        for axis, (name, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            draw(axis, found[name])
            axis.legend(fontsize=8)
    return figure


def draw_checks(checks: Sequence[Row]) -> Figure:
    """Every check as a line: its interval, and its bounds in grey; green holds, red is refuted."""
    known = [row for row in checks if row["value"] is not None]
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.5, 0.8 + 0.27 * len(known)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(known):
            colour = PALETTE[2] if row["holds"] else PALETTE[1] if row["refuted"] else INK
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.2)
            face = colour if row["holds"] else "white"
            axis.plot(row["value"], place, "o", color=colour, markerfacecolor=face, markersize=5)
            for bound in (row["at_least"], row["at_most"]):
                if bound is not None:
                    axis.plot([bound, bound], [place - 0.4, place + 0.4], color=QUIET, linewidth=1.4)
        labels = [f"{row['claim']}: {row['check']}" for row in known]
        axis.set_yticks(range(len(known)), labels, fontsize=7)
        axis.set_ylim(len(known) - 0.4, -0.6)
        axis.set_xlabel(
            "found, with its 95% interval\ngrey: what the rule asks; green: holds; red: refuted", fontsize=8
        )
    return figure


def _draw_static(axis: Axes, rows: Sequence[Row]) -> None:
    for kind, colour in KINDS.items():
        points = [row for row in rows if row["kinds"] == kind and row["entry"].startswith("heads_")]
        _draw_line(axis, points, "msr", "relative", colour, f"{kind} kinds")
    axis.set(xlabel="MSR of static heads", ylabel="of the dense score", title="Static sparsity", xlim=(0, 1))
    axis.axhline(1, color=QUIET, linestyle=":", linewidth=1.2)


def _draw_esr(axis: Axes, rows: Sequence[Row]) -> None:
    for number, name in enumerate(("routed", "static")):
        points = [row for row in rows if row["kinds"] == "all" and row["entry"].startswith(f"{name}_")]
        _draw_line(axis, points, "esr_prefill", "relative", PALETTE[number], name)
    axis.set(xlabel="ESR of prefill", ylabel="of the dense score", title="Quality against sparsity")
    axis.axhline(1, color=QUIET, linestyle=":", linewidth=1.2)


def _draw_targets(axis: Axes, rows: Sequence[Row]) -> None:
    wholes = sorted((row for row in rows if row["entry"].startswith("target_") and row["length"] is None), key=_target)
    for kind, colour in KINDS.items():
        points = [row for row in wholes if row["kinds"] == kind]
        axis.plot(list(map(_target, points)), [row["msr"] for row in points], "o-", color=colour, label=f"MSR, {kind}")
    every = [row for row in wholes if row["kinds"] == "all"]
    scores = [row["relative_value"] for row in every]
    axis.plot(list(map(_target, every)), scores, "s--", color=INK, label="score, of dense")
    axis.set(xlabel="target MSR of sensitive kinds", title="Target sweep", ylim=(0, 1.08))


def _target(row: Row) -> float:
    return float(row["entry"].partition("_")[2])


def _draw_line(axis: Axes, rows: Sequence[Row], x: str, y: str, colour: str, label: str) -> None:
    # The rows of single lengths are parts of those without.
    points = sorted((row for row in rows if row["length"] is None), key=lambda row: row[x])
    values = [row[f"{y}_value"] for row in points]
    spread = [[v - row[f"{y}_low"] for v, row in zip(values, points, strict=True)]]
    spread.append([row[f"{y}_high"] - v for v, row in zip(values, points, strict=True)])
    axis.errorbar(
        [row[x] for row in points],
        values,
        yerr=spread,
        marker="o",
        capsize=3,
        elinewidth=1.1,
        color=colour,
        label=label,
    )


PANELS = {"static_msr": _draw_static, "quality_esr": _draw_esr, "target_sweep": _draw_targets}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what there are records of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    options = parser.parse_args(arguments)
    for scale in SCALES.values():
        summary = options.results / f"paper_{scale.name}.json"
        if not summary.exists():
            continue
        paths = {name: options.results / f"paper_{scale.name}_{name}.json" for name in PANELS}
        found = {name: read_record(path)["metrics"]["rows"] for name, path in paths.items() if path.exists()}
        pictures = {
            f"paper_{scale.name}.svg": draw_panels(found),
            f"paper_{scale.name}_checks.svg": draw_checks(read_record(summary)["metrics"]["checks"]),
        }
        for name, figure in pictures.items():
            if figure is not None:
                save_figure(figure, options.figures / name)
                print(options.figures / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
