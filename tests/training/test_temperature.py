import math

import pytest

from elastic_attention.training.recipe import OptimizerConfig, TemperatureConfig
from elastic_attention.training.schedule import learning_rate_at, noise_scale_at, temperature_at


def test_the_rate_warms_up_and_decays():
    optimizer = OptimizerConfig(learning_rate=1.0)
    rates = [learning_rate_at(optimizer, step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(optimizer.final_ratio, abs=0.01)


def test_the_cosine_reaches_its_end():
    temperature = TemperatureConfig(start=1.5, end=0.5, ratio=0.5)
    assert temperature_at(temperature, 0, 100) == 1.5
    assert temperature_at(temperature, 25, 100) == pytest.approx(1.0)
    assert {temperature_at(temperature, step, 100) for step in (50, 75, 99)} == {0.5}


def test_the_noise_falls_to_its_end():
    assert {noise_scale_at(TemperatureConfig(), step, 100) for step in (0, 50, 99)} == {1.0}
    falling = TemperatureConfig(ratio=0.5, noise_end=0.2)
    assert [noise_scale_at(falling, step, 100) for step in (0, 25, 50, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_a_cosine_over_no_steps_is_its_end():
    assert temperature_at(TemperatureConfig(start=1.5, end=0.5, ratio=0.0), 0, 100) == 0.5


def test_the_exponential_of_the_paper():
    """Eq. 14 with p = share of the steps: 1.5 falls to its floor of 1 after ln(1.5) / 0.6 = 68% of them."""
    paper = TemperatureConfig(schedule="exponential", start=1.5, end=1.0)
    assert (paper.rate, paper.final_p) == (0.6, 1.0)
    for step in (0, 10, 50, 67):
        assert temperature_at(paper, step, 100) == pytest.approx(1.5 * math.exp(-0.6 * step / 100))
    assert temperature_at(paper, 67, 100) > 1.0
    assert {temperature_at(paper, step, 100) for step in (68, 80, 99)} == {1.0}


def test_p_says_how_far_the_exponential_falls():
    steep = TemperatureConfig(schedule="exponential", start=2.0, end=0.1, rate=0.5, final_p=4.0)
    assert temperature_at(steep, 50, 100) == pytest.approx(2.0 * math.exp(-0.5 * 4.0 * 0.5))
    still = TemperatureConfig(schedule="exponential", start=2.0, end=0.1, rate=0.0)
    assert {temperature_at(still, step, 100) for step in range(100)} == {2.0}
