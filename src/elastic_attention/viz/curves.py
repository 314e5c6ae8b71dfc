"""Training curves from the JSON-lines log of the trainer: loss, MSR by category, multipliers, temperature."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .style import INK, PALETTE, QUIET, figure_style, pick_colours, save_figure
from .units import to_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Steps = Sequence[Mapping[str, Any]]
Intervals = Mapping[str, tuple[float, float]]


def save_curves(
    log: str | os.PathLike[str], path: str | os.PathLike[str], *, intervals: Intervals | None = None
) -> None:
    """Draw the training log `log` into `path` (.png or .svg).

    Args:
        log: JSON lines, one object a step, with `step` and any of `lm_loss`, `regularization`, `msr` (by category),
            `multiplier_linear`, `multiplier_quadratic` (by category), `temperature`, `noise_scale`,
            `learning_rate`.
        path: the figure.
        intervals: target interval [low, high] of the MSR by category, drawn as bands.

    Raises:
        ElasticAttentionError: the log is missing, empty or malformed, or the figure cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    save_figure(draw_curves(read_training_log(log), intervals=intervals), path)


def read_training_log(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the steps of a training log in order of `step`; of a step logged twice (a resumed run) the last one counts.

    An unfinished last line, as a killed run leaves it, is passed over.

    Raises:
        ElasticAttentionError: the file cannot be read, a line is no step (the message names it), or there is none.
    """
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ElasticAttentionError(
            f"Cannot read the training log {log}: {error.strerror or error}. Check the path."
        ) from error
    steps: dict[int, dict[str, Any]] = {}
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ElasticAttentionError(f"{log}, line {number} is not JSON ({error}). Remove the line.") from error
        if not isinstance(entry, dict) or to_number(entry.get("step")) is None:
            raise ElasticAttentionError(f"{log}, line {number} has no 'step': {line.strip():.60}. Name a training log.")
        steps[int(entry["step"])] = entry
    if not steps:
        raise ElasticAttentionError(f"The training log {log} holds no step. Let the training run reach its first step.")
    return [steps[step] for step in sorted(steps)]


def draw_curves(steps: Steps, *, intervals: Intervals | None = None) -> "Figure":
    """Draw four panels over the training step: loss and regularisation, MSR by category with its band, multipliers,
    schedules: temperature, share of the noise and learning rate.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    bands = dict(intervals or {})
    categories = sorted({*bands, *(name for step in steps for name in step.get("msr") or {})})
    colours = pick_colours(categories)
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(10, 6.4), layout=layout)
        (loss, msr), (multipliers, temperature) = figure.subplots(2, 2, sharex=True)
        _draw_loss(loss, steps)
        _draw_msr(msr, steps, colours, bands)
        _draw_multipliers(multipliers, steps, colours)
        _draw_schedules(temperature, steps)
        for axis in (multipliers, temperature):
            axis.set_xlabel("step")
        _add_legend(msr, below=0.08)
        _add_legend(multipliers, below=0.2)
    return figure


def _draw_loss(axis: "Axes", steps: Steps) -> None:
    name = next((n for n in ("lm_loss", "distillation_loss") if any(n in step for step in steps)), "lm_loss")
    at, values = pick_series(steps, name)
    axis.set_title({"lm_loss": "LM loss", "distillation_loss": "Distillation loss"}[name])
    # The raw loss jumps from batch to batch; the running mean shows where it goes.
    axis.plot(at, values, color=PALETTE[0], alpha=0.3, linewidth=1)
    axis.plot(at, smooth(values, window=max(1, len(values) // 25)), color=PALETTE[0], label="running mean")
    axis.set_ylim(bottom=0)
    at, penalties = pick_series(steps, "regularization")
    if penalties:
        _add_right_axis(axis, at, penalties, "regularisation (dashed)")


def _draw_msr(axis: "Axes", steps: Steps, colours: Mapping[str, str], intervals: Intervals) -> None:
    axis.set_title("Model sparsity ratio and its target interval")
    for category, colour in colours.items():
        if category in intervals:
            low, high = intervals[category]
            axis.axhspan(low, max(high, low + 0.004), color=colour, alpha=0.13, linewidth=0)
        axis.plot(*pick_series(steps, "msr", category), color=colour, label=category)
    axis.set_ylim(0, 1.02)


def _draw_multipliers(axis: "Axes", steps: Steps, colours: Mapping[str, str]) -> None:
    axis.set_title("Multipliers")
    for category, colour in colours.items():
        for key, line, sign in (("multiplier_linear", "-", "λ₁"), ("multiplier_quadratic", "--", "λ₂")):
            at, values = pick_series(steps, key, category)
            if values:
                axis.plot(at, values, color=colour, linestyle=line, label=f"{sign} {category}")


def _draw_schedules(axis: "Axes", steps: Steps) -> None:
    axis.set_title("Temperature and learning rate")
    axis.plot(*pick_series(steps, "temperature"), color=INK)
    at, scales = pick_series(steps, "noise_scale")
    if scales:
        axis.plot(at, scales, color=INK, linestyle=":")
    axis.set_ylabel("temperature, share of the noise (dotted)" if scales else "temperature")
    axis.set_ylim(bottom=0)
    at, rates = pick_series(steps, "learning_rate")
    if rates:
        _add_right_axis(axis, at, rates, "learning rate (dashed)")


def _add_right_axis(axis: "Axes", at: Sequence[float], values: Sequence[float], label: str) -> None:
    """A second quantity in the panel, with its own scale on the right."""
    right = axis.twinx()
    right.grid(False)
    right.plot(at, values, color=PALETTE[1], linestyle="--")
    right.set_ylabel(label, color=PALETTE[1])
    right.set_ylim(bottom=min(0.0, *values))
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(QUIET)


def _add_legend(axis: "Axes", *, below: float) -> None:
    """A legend under the panel, `below` panel heights down, where it covers neither curves nor labels."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = 2 if len(handles) == 4 else min(len(handles), 3)
        axis.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=columns, fontsize=9)


def pick_series(steps: Steps, key: str, category: str | None = None) -> tuple[list[float], list[float]]:
    """The steps and values of one quantity, where it was logged."""
    found: list[tuple[float, float]] = []
    for step in steps:
        value = step.get(key)
        if category is not None:
            value = value.get(category) if isinstance(value, Mapping) else None
        number = to_number(value)
        if number is not None:
            found.append((float(step["step"]), number))
    return [at for at, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
