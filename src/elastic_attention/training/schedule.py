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
    """Cosine from start to end over the first `ratio` of the steps, then end."""
    span = max(1.0, config.ratio * steps)
    return config.end + 0.5 * (config.start - config.end) * (1 + math.cos(math.pi * min(1.0, step / span)))
