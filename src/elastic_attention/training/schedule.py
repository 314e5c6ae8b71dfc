"""Learning rate and temperature as functions of the step, so that a resumed run needs no state for them."""

import math

from .recipe import OptimizerConfig, TemperatureConfig


def learning_rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to `final_ratio` of the peak; step counts from 0."""
    warmup = max(1, round(config.warmup_ratio * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * cosine)


def temperature_at(config: TemperatureConfig, step: int, steps: int) -> float:
    """Temperature of a step, which counts from 0; `TemperatureConfig` says how it falls."""
    if config.schedule == "exponential":
        return max(config.end, config.start * math.exp(-config.rate * config.final_p * step / steps))
    return _fall(config.start, config.end, config.ratio, step, steps)


def noise_scale_at(config: TemperatureConfig, step: int, steps: int) -> float:
    """Share of the noise that a step draws with; it falls from 1 to `noise_end`."""
    return _fall(1.0, config.noise_end, config.ratio, step, steps)


def _fall(start: float, end: float, ratio: float, step: int, steps: int) -> float:
    """A cosine over the first `ratio` of the steps, then constant."""
    progress = min(1.0, step / (ratio * steps)) if ratio else 1.0
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
