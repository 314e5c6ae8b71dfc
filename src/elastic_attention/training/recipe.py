"""A training run as one strict TOML file."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SparsePattern, StreamingConfig, XAttentionConfig
from ..errors import RecipeError
from ..settings import from_dict, read_toml
from .data.config import DataConfig, PackConfig, SourceConfig
from .losses import LOSSES
from .objective import CONSTRAINTS
from .parallel.config import ParallelConfig
from .sources import SOURCES

SCHEDULES = ("cosine", "exponential")
__all__ = [
    "DataConfig",
    "Interval",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PackConfig",
    "Recipe",
    "RouteConfig",
    "SourceConfig",
    "TemperatureConfig",
    "load_recipe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteConfig:
    """Where routes come from.

    Attributes:
        source: "head_router" (Elastic Attention), "layer_router" (Flux Attention), or one learned mask for all inputs:
            "static" (sampled like a router's logits), "hard_concrete" (PruLong), "alpha" (DuoAttention).
        init_std: of fresh routers.
        hidden_factor: width of their hidden layers in head dims, None = that of the source's paper (4, layers 8 and 4).
        pooled_tokens: at each end of the prompt, what a router reads.
        standardize: routers learn on inputs of mean 0 and about unit covariance in the first packs. It matters where
            keys and queries have large biases, as those of Qwen2.5 do.
    """

    source: str = "head_router"
    init_std: float = 0.08
    hidden_factor: int | None = None
    pooled_tokens: int = 100
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.pooled_tokens < 1 or (self.hidden_factor is not None and self.hidden_factor < 1):
            raise ValueError(
                f"routes.pooled_tokens={self.pooled_tokens} and hidden_factor={self.hidden_factor} must be at least 1."
            )
        if not 0 <= self.init_std < math.inf:
            raise ValueError(f"routes.init_std={self.init_std} must be a number of at least 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is minimised. None is what the source of the routes was published with.

    Attributes:
        loss: "lm" (cross-entropy of the answer) or "distillation" (distance to the dense model's final hidden states).
        constraint: "interval" (of each category), "signed" (one target that rises from 0, from both sides), or
            "mean_full" (a price on every full head).
        ramp_ratio: share of the steps over which the target of "signed" rises.
        full_weight: the price of "mean_full".
    """

    loss: str | None = None
    constraint: str | None = None
    ramp_ratio: float = 0.8
    full_weight: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.ramp_ratio <= 1.0:
            raise ValueError(f"ramp_ratio={self.ramp_ratio} must be a ratio in [0, 1].")
        if not 0 <= self.full_weight < math.inf:
            raise ValueError(f"objective.full_weight={self.full_weight} must be a number of at least 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW on the routes with warm-up and cosine decay; Adam ascent on the multipliers, without decay or clipping.

    Attributes:
        betas: of AdamW on the routes.
        weight_decay: of the matrices of routers; biases, masks and multipliers have none.
        warmup_ratio: share of the steps until the rate is full.
        final_ratio: of the full rate, at the end.
        max_grad_norm: gradients of the routes are scaled down to it; inf = never.
        multiplier_learning_rate: constant.
    """

    learning_rate: float = 2e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_ratio: float = 0.1
    final_ratio: float = 0.05
    max_grad_norm: float = 1.0
    multiplier_learning_rate: float = 3e-2

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be above 0.")
        if self.learning_rate == math.inf:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate} is no number to learn with; lower it.")
        for name in ("weight_decay", "multiplier_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be a number of at least 0.")
        for name in ("warmup_ratio", "final_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be a ratio in [0, 1].")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1).")


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureConfig:
    """Temperature of the noise that routes are drawn with, from `start` down to `end`.

    Attributes:
        schedule: "cosine" over the first `ratio` of the steps, then constant (released code: 1.5, 1.0, .6); or
            "exponential", max(end, start * exp(-rate * p)) (Elastic Attention, Eq. 14).
        ratio: of "cosine" and of the noise.
        noise_end: share of the noise that is left after a cosine over the first `ratio` of the steps. With all of it,
            routers may keep heads undecided: noise then holds the mean in its interval, and inference, which takes the
            likelier side, is elsewhere.
        rate: r of Eq. 14.
        final_p: p of Eq. 14 after the last step. The paper does not say what p is; here it rises from 0 in proportion
            to the steps, so 1 makes it the share of the steps that are done.
    """

    schedule: str = "cosine"
    start: float = 1.5
    end: float = 0.4
    ratio: float = 0.6
    noise_end: float = 1.0
    rate: float = 0.6
    final_p: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"temperature.schedule={self.schedule!r} is unknown; use one of {list(SCHEDULES)}.")
        if not (0 < self.start < math.inf and 0 < self.end < math.inf and 0.0 <= self.ratio <= 1.0):
            raise ValueError(
                f"temperature.start={self.start} and end={self.end} must be above 0, ratio={self.ratio} in [0, 1]."
            )
        if not 0.0 <= self.noise_end <= 1.0:
            raise ValueError(f"temperature.noise_end={self.noise_end} must be a ratio in [0, 1].")
        if not (0 <= self.rate < math.inf and 0 <= self.final_p < math.inf):
            raise ValueError(f"temperature.rate={self.rate} and final_p={self.final_p} must be at least 0.")


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
        pattern: what sparse heads read; None = the default of `ElasticConfig.for_model`. Another kind than streaming
            says so: `kind = "xattention"` or "triangle".
        full_pattern: what full heads read, "full" or XAttention.
        checkpoint_every, validate_every: in steps; 0 = never.
        validation_samples: held-out samples of each task, at most; 0 = all of them.
        on_nan: what a step with a loss or gradient that is no number does: "stop" ends the run before it, "skip" leaves
            it out, three in a row end the run all the same.
        recompute_layers: keep no activations inside layers and compute them again in the backward: less memory, a third
            more time.
        keep_attention: with `recompute_layers`, layers keep the results of the fused attention, so it runs once:
            1.6 in place of 0.5 GB a layer of an 8B model at 64K tokens.
        whole_layers: with `recompute_layers`, the last layers of the model that keep everything and never run again; as
            many as there is memory for: 7 GB each in an 8B model at 64K tokens, with `fuse_layers`.
        fuse_layers: torch.compile fuses norms, rotations and MLPs of the model: a tenth less time on a GPU, but half
            a minute more in the first step.
        fast_gradients: cuDNN computes the gradients of full heads where it is faster (streaming patterns and samples
            from 16K tokens, on Hopper GPUs): a tenth less time at 64K tokens. It adds up in any order, so equal runs
            differ in the last bits, and a run that goes on differs in them from one that was never stopped.
        precision: dtype of the frozen model, "bfloat16" or "float32".
        parallel: how a run is spread over processes; changes speed and memory alone.
    """

    model: str
    steps: int
    intervals: dict[str, Interval]
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    routes: RouteConfig = field(default_factory=RouteConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    pattern: SparsePattern | None = None
    full_pattern: str | XAttentionConfig = "full"
    checkpoint_every: int = 50
    validate_every: int = 100
    validation_samples: int = 4
    on_nan: str = "stop"
    recompute_layers: bool = False
    keep_attention: bool = False
    whole_layers: int = 0
    fuse_layers: bool = False
    fast_gradients: bool = False
    precision: str = "bfloat16"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("routes.source", self.routes.source, tuple(SOURCES)),
            ("objective.loss", self.objective.loss, (None, *LOSSES)),
            ("objective.constraint", self.objective.constraint, (None, *CONSTRAINTS)),
            ("data.loss_on", self.data.loss_on, ("response", "all")),
            ("on_nan", self.on_nan, ("stop", "skip")),
            ("precision", self.precision, ("bfloat16", "float32")),
            ("full_pattern", self.full_pattern if isinstance(self.full_pattern, str) else "full", ("full",)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {list(known)}.")
        counts = ("checkpoint_every", "validate_every", "validation_samples", "whole_layers")
        for name, least in (("steps", 1), *((name, 0) for name in counts)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.whole_layers and not self.recompute_layers:
            raise ValueError(f"whole_layers={self.whole_layers} needs recompute_layers = true, which leaves them out.")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} has more than 64 bits; take a smaller one.")
        if self.validate_every and not self.data.packs.has_heldout:
            raise ValueError("validate_every needs data.packs.heldout_files; name some, or set validate_every = 0.")
        if self.data.kinds and self.data.packs.has_files:
            raise ValueError("data.kinds are of generated samples, which the files of data.packs replace; give one.")
        if unknown := {source.category for source in self.data.packs.sources} - set(self.intervals):
            raise ValueError(f"[intervals] misses {sorted(unknown)}, categories of data.packs.sources; add them.")
        if self.full_pattern != "full" and not isinstance(self.pattern, StreamingConfig | None):
            raise ValueError(f"full_pattern={self.full_pattern} needs a streaming pattern, got {self.pattern}.")
        if not self.intervals:
            raise ValueError("[intervals] is empty; give every category of the data an interval.")

    @property
    def target_msr(self) -> float:
        """Mean over the categories of the middles of their intervals: what a mask for all inputs aims at."""
        return sum((i.low + i.high) / 2 for i in self.intervals.values()) / len(self.intervals)


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe; keyword arguments replace top-level keys.

    `extends = "other.toml"` starts from a recipe in the same folder. Tables are merged, but one with a `kind` and
    all other values replace what was there.

    Raises:
        RecipeError: the file is missing, no TOML, or has unknown, missing or wrong keys; the message names them.
    """
    try:
        recipe = from_dict(Recipe, _read_extended(Path(path), ()), str(path))
        return dataclasses.replace(recipe, **overrides)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RecipeError(f"There is no recipe {error.filename}; see the recipes/ folder for examples.") from None
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error


def _read_extended(path: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    content = read_toml(path)
    name = content.pop("extends", None)
    if name is None:
        return content
    if not isinstance(name, str) or Path(name).name != name or name in (*seen, path.name):
        raise ValueError(f"{path}: extends={name!r} must be the name of another recipe in the same folder.")
    return _merge(_read_extended(path.parent / name, (*seen, path.name)), content)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        # A kind of its own has keys of its own.
        is_table = isinstance(value, dict) and isinstance(merged.get(key), dict) and "kind" not in value
        merged[key] = _merge(merged[key], value) if is_table else value
    return merged
