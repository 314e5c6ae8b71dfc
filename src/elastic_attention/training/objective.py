"""The interval constraint on the model sparsity ratio of each category (Elastic Attention, Eq. 8 and 9)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .recipe import Interval


class IntervalConstraint(nn.Module):
    """Penalty multiplier_linear * d + multiplier_quadratic * d^2, d = distance of the MSR to its category's interval.

    The multipliers are maximised; they start at 0 and stay >= 0. Inside the interval d = 0 and they rest.
    """

    def __init__(self, intervals: dict[str, Interval]) -> None:
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
        distance = (self.low[index] - msr).clamp(min=0) + (msr - self.high[index]).clamp(min=0)
        return self.multiplier_linear[index] * distance + self.multiplier_quadratic[index] * distance**2

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multipliers at or above 0 after an optimiser step."""
        self.multiplier_linear.clamp_(min=0)
        self.multiplier_quadratic.clamp_(min=0)
