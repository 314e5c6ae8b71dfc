"""A training run as one strict TOML file."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import StreamingConfig, from_dict, read_toml
from ..errors import RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Samples of a run; the batch of a step is a function of (seed, step) alone.

    Attributes:
        kinds: kinds of `tasks.KINDS` in equal shares; empty = all of them.
        corpora: folder made by `python -m elastic_attention.tasks.corpora`, None = the texts inside the package.
        lengths: prompt lengths in tokens, taken in turn step by step.
        tokens_per_step: length * samples of a step, about.
        rows_per_forward: samples that go through the model at once; changes memory, not the result's meaning.
        workers: processes that make samples; any number gives the same samples.
        loss_on: "response" (answer tokens) or "all" (prompt tokens too, as the released code does).
    """

    kinds: tuple[str, ...] = ()
    corpora: str | None = None
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    tokens_per_step: int = 32_768
    rows_per_forward: int = 16
    workers: int = 0
    loss_on: str = "response"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteConfig:
    """Where routes come from: "head_router" (Elastic Attention) or "static" (one learned mask for all inputs)."""

    source: str = "head_router"
    init_std: float = 0.08
    pooled_tokens: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW on the routes with warm-up and cosine decay; Adam ascent on the multipliers, without decay or clipping."""

    learning_rate: float = 2e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_ratio: float = 0.1
    final_ratio: float = 0.05
    max_grad_norm: float = 1.0
    multiplier_learning_rate: float = 3e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureConfig:
    """Cosine from `start` to `end` over the first `ratio` of the steps, then constant (released code: 1.5, 1.0, .6)."""

    start: float = 1.5
    end: float = 0.4
    ratio: float = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Wanted model sparsity ratio of a category, low <= MSR <= high; low = high is the paper's equality."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"an interval needs 0 <= low <= high <= 1, got low={self.low}, high={self.high}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole run.

    Attributes:
        model: folder, hub id or "smollm2".
        steps: optimiser steps.
        intervals: by category of the data.
        pattern: what sparse heads read; None = the default of `ElasticConfig.for_model`.
        checkpoint_every, validate_every: in steps; 0 = never.
        validation_samples: of each kind, held out.
        precision: dtype of the frozen model, "bfloat16" or "float32".
    """

    model: str
    steps: int
    intervals: dict[str, Interval]
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    routes: RouteConfig = field(default_factory=RouteConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    pattern: StreamingConfig | None = None
    checkpoint_every: int = 50
    validate_every: int = 100
    validation_samples: int = 4
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("routes.source", self.routes.source, ("head_router", "static")),
            ("data.loss_on", self.data.loss_on, ("response", "all")),
            ("precision", self.precision, ("bfloat16", "float32")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {list(known)}.")
        for name, number in (("steps", self.steps), ("data.rows_per_forward", self.data.rows_per_forward)):
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1.")
        if not self.data.lengths:
            raise ValueError("data.lengths is empty; name at least one prompt length in tokens.")


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe; keyword arguments replace top-level keys.

    Raises:
        RecipeError: the file is missing, no TOML, or has unknown, missing or wrong keys; the message names them.
    """
    try:
        recipe = from_dict(Recipe, read_toml(path), str(path))
        return dataclasses.replace(recipe, **overrides)
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}; see the recipes/ folder for examples.") from None
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error
