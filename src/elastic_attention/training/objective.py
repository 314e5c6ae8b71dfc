"""What holds the model sparsity ratio (MSR) where it should be, by the name a recipe gives it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .recipe import Interval, Recipe
    from .sources import RouteModel

CONSTRAINTS = ("interval", "signed", "mean_full")


class Constraint(nn.Module):
    """A penalty on the MSR of each sample. Its parameters, if it has any, are multipliers and are maximised."""

    def start_step(self, progress: float) -> None:
        """Called before a step; `progress` is the share of the steps that are done, in [0, 1)."""

    def clamp(self) -> None:
        """Bring the multipliers back into their range after an optimiser step."""

    def describe(self) -> dict[str, Any]:
        """Numbers for the log."""
        return {}


class IntervalConstraint(Constraint):
    """Interval of each category (Elastic Attention, Eq. 8 and 9, with an interval in place of one target).

    Penalty multiplier_linear * d + multiplier_quadratic * d^2, d = distance of the MSR to its category's interval.
    The multipliers start at 0 and stay >= 0. Inside the interval, its edges included, d = 0 and nothing is pushed.
    """

    def __init__(self, intervals: "dict[str, Interval]") -> None:
        super().__init__()
        self.categories = tuple(sorted(intervals))
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor([intervals[c].low for c in self.categories]), persistent=False)
        self.register_buffer("high", torch.tensor([intervals[c].high for c in self.categories]), persistent=False)
        self.multiplier_linear = nn.Parameter(torch.zeros(len(self.categories)))
        self.multiplier_quadratic = nn.Parameter(torch.zeros(len(self.categories)))

    def forward(self, msr: Tensor, categories: Sequence[str]) -> Tensor:
        """Penalty of each sample, (B,) float32.

        Args:
            msr: (B,) model sparsity ratios, differentiable.
            categories: of each sample.

        Raises:
            KeyError: a category has no interval.
        """
        if missing := sorted(set(categories) - set(self.categories)):
            raise KeyError(f"categories {missing} have no interval; add them to [intervals] of the recipe.")
        index = torch.tensor([self.categories.index(c) for c in categories], device=msr.device)
        # Not clamp: its gradient at 0 is 1, and would push a sample off the edge of the interval that it may stand on.
        distance = torch.relu(self.low[index] - msr) + torch.relu(msr - self.high[index])
        return self.multiplier_linear[index] * distance + self.multiplier_quadratic[index] * distance**2

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multipliers at or above 0."""
        self.multiplier_linear.clamp_(min=0)
        self.multiplier_quadratic.clamp_(min=0)

    def describe(self) -> dict[str, Any]:
        """The multipliers by category."""
        return {
            name: dict(zip(self.categories, getattr(self, name).tolist(), strict=True))
            for name in ("multiplier_linear", "multiplier_quadratic")
        }


class SignedConstraint(Constraint):
    """One target for all samples, from both sides (PruLong): multiplier_linear * e + multiplier_quadratic * e^2.

    e = MSR - target, signed; the target rises linearly from 0 to `target` over the first `ramp_ratio` of the steps.
    The linear multiplier follows the sign of e, so neither is clamped.
    """

    def __init__(self, target: float, ramp_ratio: float) -> None:
        super().__init__()
        self.target, self.ramp_ratio = target, ramp_ratio
        self.current = 0.0
        self.multiplier_linear = nn.Parameter(torch.zeros(()))
        self.multiplier_quadratic = nn.Parameter(torch.zeros(()))

    def start_step(self, progress: float) -> None:
        """Move the target."""
        self.current = self.target * (min(1.0, progress / self.ramp_ratio) if self.ramp_ratio else 1.0)

    def forward(self, msr: Tensor, categories: Sequence[str]) -> Tensor:
        """Penalty of each sample, (B,) float32; the categories do not matter."""
        error = msr - self.current
        return self.multiplier_linear * error + self.multiplier_quadratic * error**2

    def describe(self) -> dict[str, Any]:
        """The target of this step and the multipliers."""
        return {
            "target_msr": self.current,
            "multiplier_linear": {"all": self.multiplier_linear.item()},
            "multiplier_quadratic": {"all": self.multiplier_quadratic.item()},
        }


class MeanFull(Constraint):
    """weight * mean share that is full (DuoAttention's L1 norm of the blend weights), nothing to maximise."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, msr: Tensor, categories: Sequence[str]) -> Tensor:
        """Penalty of each sample, (B,) float32; the categories do not matter."""
        return self.weight * (1 - msr)


def build_constraint(recipe: "Recipe", source: "RouteModel") -> Constraint:
    """The constraint that a recipe asks for, or the one that its source comes with."""
    options = recipe.objective
    kind = options.constraint or source.constraint
    if kind == "signed":
        return SignedConstraint(recipe.target_msr, options.ramp_ratio)
    return MeanFull(options.full_weight) if kind == "mean_full" else IntervalConstraint(recipe.intervals)
