import math

import pytest
import torch

from elastic_attention.evaluation.intervals import bootstrap_macro


def test_bootstrap_covers_and_pairs():
    generator = torch.Generator().manual_seed(0)
    base = {"k": (torch.rand(400, generator=generator) < 0.8).double()}
    interval = bootstrap_macro(base, base)
    low, high = interval["score"][1:]
    expected = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert interval["relative"] == (1.0, 1.0, 1.0)  # the same samples on both sides leave no doubt


def test_a_few_resamples_without_a_base_leave_the_interval():
    """Of eight samples, one resample in 256 holds no right answer of the base; where a third do, nothing is known."""
    base = {"k": torch.tensor([1, 0] * 4, dtype=torch.float64)}
    low, high = bootstrap_macro({"k": base["k"] / 2}, base)["relative"][1:]
    assert low == high == 0.5
    rare = {"k": torch.tensor([1] + [0] * 7, dtype=torch.float64)}
    assert bootstrap_macro(rare, rare)["relative"] == (1.0, -math.inf, math.inf)
