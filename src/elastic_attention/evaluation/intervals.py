"""Means and paired bootstrap intervals of scores, macro-averaged over kinds."""

import math

import torch
from torch import Tensor

RESAMPLES = 2000
LEAST_SAMPLES = 10
"""Fewer say too little of what was not drawn: an interval of theirs would look like knowledge."""


def bootstrap_macro(
    scores: dict[str, Tensor], base: dict[str, Tensor], *, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Macro average, and its ratio to a base method on the same samples, with 95% percentile intervals.

    Args:
        scores, base: kind -> (n,) scores of the same samples in the same order.

    Returns:
        {"score": (mean, low, high), "relative": (ratio, low, high)}; resamples draw samples within each kind, the
        same ones for both methods. Where the base scores 0 in a resample, the ratio is infinite; 0 / 0 may be anything,
        so it widens the interval on both sides. An end of it may thus be infinite.

    Resamples hold only what was drawn, so percentiles of few samples are too narrow. Where 12 samples of a method that
    is right in 95% of all are all right, the interval is [1, 1]; of such draws it holds the truth in about half. Nor do
    they know of what the samples share: a seed of the training, one draw of random heads, tasks that were chosen by
    their dense scores. A kind of one sample seems to have no spread at all, and one of n samples a variance that is too
    small by 1 / n. `LEAST_SAMPLES` is where rows of an evaluation begin to have an interval.
    """
    generator = torch.Generator().manual_seed(seed)
    means, base_means = [], []
    for kind, values in scores.items():
        index = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
        means.append(values[index].mean(dim=1))
        base_means.append(base[kind][index].mean(dim=1))
    macro, base_macro = torch.stack(means).mean(dim=0), torch.stack(base_means).mean(dim=0)
    point = torch.stack([v.mean() for v in scores.values()]).mean()
    base_point = torch.stack([base[k].mean() for k in scores]).mean()
    return {
        "score": (float(point), *_percentiles(macro)),
        "relative": (float(point / base_point), *_percentiles(macro / base_macro)),
    }


def _percentiles(values: Tensor) -> tuple[float, float]:
    return _percentile(values, 0.025, -math.inf), _percentile(values, 0.975, math.inf)


def _percentile(values: Tensor, share: float, unknown: float) -> float:
    """Linear between the two nearest values, infinite where one of them is."""
    ordered = values.masked_fill(values.isnan(), unknown).sort().values
    place = share * (len(ordered) - 1)
    low, high = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
    return low + (place - math.floor(place)) * (high - low) if math.isfinite(high - low) else unknown
