"""Training curves inside the page: loss, sparsity by category with its target, multipliers, temperature."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import Chart, Point, Series, draw_chart
from .curves import Intervals, Steps, pick_series, smooth

LOSSES = {"lm_loss": "LM loss", "distillation_loss": "Distillation loss"}
MAX_POINTS = 400  # of a curve; more cannot be seen


def build_training_charts(steps: Steps, intervals: Intervals | None = None) -> list[Chart]:
    """The charts that a training log allows.

    Args:
        steps: of `read_training_log`.
        intervals: target interval of the MSR by category, drawn as bands.
    """
    bands = dict(intervals or {})
    categories = sorted({*bands, *(name for step in steps for name in step.get("msr") or {})})
    loss = next((name for name in LOSSES if pick_series(steps, name)[1]), "lm_loss")
    at, values = pick_series(steps, loss)
    window = max(1, len(values) // 25)
    panels = {
        LOSSES[loss]: (
            f"The running mean of {window} steps, and every step behind it.",
            [_draw("each step", at, values, 6), _draw("running mean", at, smooth(values, window), 0)],
        ),
        "Model sparsity ratio by category": (
            "Bands are the target intervals." if bands else "The share of heads that are sparse.",
            [
                _draw(name, *pick_series(steps, "msr", name), place, band=bands.get(name))
                for place, name in enumerate(categories)
            ],
        ),
        "Multipliers": (
            "Linear ones, and quadratic ones dashed.",
            [
                _draw(f"{sign} {name}", *pick_series(steps, key, name), place, is_dashed=sign == "λ₂")
                for place, name in enumerate(categories)
                for key, sign in (("multiplier_linear", "λ₁"), ("multiplier_quadratic", "λ₂"))
            ],
        ),
        "Temperature": (
            "Of the sampled routes, and the share of the noise that they are drawn with.",
            [
                _draw("temperature", *pick_series(steps, "temperature"), 0),
                _draw("share of the noise", *pick_series(steps, "noise_scale"), 1),
            ],
        ),
    }
    charts = []
    for title, (note, series) in panels.items():
        seen = [one for one in series if one.points]
        if seen:
            charts.append(draw_chart(seen, title=title, note=note, x_label="step", y_label=""))
    return charts


def _draw(
    name: str,
    at: Sequence[float],
    values: Sequence[float],
    colour: int,
    *,
    band: tuple[float, float] | None = None,
    is_dashed: bool = False,
) -> Series:
    stride = -(-len(at) // MAX_POINTS) or 1
    kept = sorted({*range(0, len(at), stride), *range(len(at))[-1:]})
    points = [Point(x=at[i], y=values[i], title="") for i in kept]
    return Series(
        name=name, points=points, is_joined=True, has_marks=False, band=band, is_dashed=is_dashed, colour=colour
    )
