"""Means with intervals over samples and seeds, and verdicts that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from elastic_attention.evaluation.answer_log import Line

RESAMPLES, MASTERED = 2000, 0.5
ROUNDING = 1e-9
ROBUST = frozenset({"robust", "summarization", "few_shot", "code"})

Seeds = Sequence[Sequence[Line]]
"""The answers of one method, one list for each seed that it was trained with."""
Cell = tuple[str, int]
"""Task and length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and its 95% interval, which holds it; otherwise the draws are biased, and ValueError says so."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low - ROUNDING <= self.value <= self.high + ROUNDING:
            raise ValueError(
                f"{self.value} lies outside of its interval {self.low} to {self.high}: draws of this figure are "
                "biased; use `centre` of their quantiles."
            )


def centre(value: float, low: float, high: float) -> Estimate:
    """A figure that drawing biases, in an interval as wide as the draws spread; `low` and `high`: their quantiles."""
    half = (high - low) / 2
    return Estimate(value=value, low=value - half, high=value + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One part of a claim: the whole interval must lie within the bounds.

    Attributes:
        estimate: None where nothing could be measured, which is no support.
        counts: False for what is reported beside the claim and does not decide about it.
    """

    text: str
    estimate: Estimate | None
    at_least: float = float("-inf")
    at_most: float = float("inf")
    counts: bool = True

    @property
    def holds(self) -> bool:
        """Does the interval show it?"""
        found = self.estimate
        return found is not None and self.at_least <= found.low and found.high <= self.at_most

    @property
    def is_refuted(self) -> bool:
        """Does the interval show the opposite? One that crosses a bound decides nothing."""
        found = self.estimate
        return found is not None and (found.high < self.at_least or found.low > self.at_most)

    def describe(self) -> dict[str, Any]:
        """As a row of a record; open bounds are None."""
        found = asdict(self.estimate) if self.estimate else dict.fromkeys(("value", "low", "high"))
        bounds = {
            name: bound if isfinite(bound) else None
            for name, bound in (("at_least", self.at_least), ("at_most", self.at_most))
        }
        return (
            {"check": self.text}
            | found
            | bounds
            | {"counts": self.counts, "holds": self.holds, "refuted": self.is_refuted}
        )


def give_verdict(checks: Iterable[Check]) -> str:
    """Of those that count: "reproduced" if all hold, "partly" if some do, else "not" if one is refuted, else "open"."""
    counted = [check for check in checks if check.counts]
    if any(check.holds for check in counted):
        return "reproduced" if all(check.holds for check in counted) else "partly"
    return "not" if any(check.is_refuted for check in counted) else "open"


def is_sensitive(line: Line) -> bool:
    """Is the answer somewhere in the text, so that a head that does not look there loses it?"""
    return line.category not in ROBUST


def is_robust(line: Line) -> bool:
    """The other kinds: code, summaries, examples."""
    return not is_sensitive(line)


KIND_GROUPS: dict[str, Callable[[Line], bool]] = {
    "all": lambda line: True,
    "sensitive": is_sensitive,
    "robust": is_robust,
}


def pick(lists: Seeds, is_wanted: Callable[[Line], bool]) -> Seeds:
    """The answers that are wanted, seed by seed."""
    return [[line for line in lines if is_wanted(line)] for lines in lists]


def find_mastered(dense: Seeds) -> set[Cell]:
    """Tasks and lengths where the dense model scores .50 or more; elsewhere nothing can be lost."""
    scores: dict[Cell, list[float]] = {}
    for line in (line for lines in dense for line in lines if not line.skipped):
        scores.setdefault((line.task, line.length), []).append(line.score)
    return {cell for cell, values in scores.items() if sum(values) >= MASTERED * len(values)}


def estimate(
    ours: Seeds,
    theirs: Seeds | None = None,
    *,
    how: str = "difference",
    measure: Callable[[Line], float] = lambda line: line.score,
    cells: Collection[Cell] | None = None,
) -> Estimate | None:
    """A macro average over tasks and lengths, or its "difference" or "ratio" to another method's on the same samples.

    Resamples draw samples within every task and length, the same ones for both methods, and seeds of each method.

    Args:
        cells: tasks and lengths to look at; None = all.

    Returns:
        None where no sample is answered by all.
    """
    lists = [*ours, *(theirs or ())]
    found = [{(x.task, x.length, x.index): measure(x) for x in lines if not x.skipped} for lines in lists]
    common = sorted(set.intersection(*map(set, found))) if found else []
    groups: dict[Cell, list[tuple[str, int, int]]] = {}
    for key in common:
        if cells is None or key[:2] in cells:
            groups.setdefault(key[:2], []).append(key)
    if not groups:
        return None
    generator = torch.Generator().manual_seed(0)
    points, draws = [], []
    for keys in groups.values():
        values = torch.tensor([[one[key] for key in keys] for one in found], dtype=torch.float64)
        index = torch.randint(len(keys), (RESAMPLES, len(keys)), generator=generator)
        points.append(values.mean(1))
        draws.append(torch.stack([row[index].mean(1) for row in values]))
    point, drawn = torch.stack(points).mean(0), torch.stack(draws).mean(0)
    value, spread = point[: len(ours)].mean(), _draw_seeds(drawn[: len(ours)], generator)
    if theirs:
        base, base_spread = point[len(ours) :].mean(), _draw_seeds(drawn[len(ours) :], generator)
        if how == "ratio" and not (base > 0 and bool((base_spread > 0).all())):
            return None
        value, spread = (value / base, spread / base_spread) if how == "ratio" else (value - base, spread - base_spread)
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=spread.dtype)).tolist()
    return Estimate(value=float(value), low=low, high=high)


def _draw_seeds(drawn: Tensor, generator: torch.Generator) -> Tensor:
    """(seeds, resamples) -> (resamples,): the mean over seeds that are drawn as well."""
    chosen = torch.randint(len(drawn), drawn.shape, generator=generator)
    return drawn.gather(0, chosen).mean(0)


def bootstrap_mean(values: Sequence[float]) -> Estimate | None:
    """The mean of single figures, one a sample."""
    if not values:
        return None
    data = torch.tensor(values, dtype=torch.float64)
    index = torch.randint(len(data), (RESAMPLES, len(data)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(data[index].mean(1), torch.tensor([0.025, 0.975], dtype=data.dtype)).tolist()
    return Estimate(value=float(data.mean()), low=low, high=high)
