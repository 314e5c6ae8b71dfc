"""A training run as one strict TOML file."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SparsePattern, StreamingConfig, XAttentionConfig, from_dict, read_toml
from ..errors import RecipeError
from .data.fitting import POLICIES
from .losses import LOSSES
from .objective import CONSTRAINTS
from .sources import SOURCES


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Samples joined to packs without padding, from files of records or from the generated kinds.

    Attributes:
        files: records as `*.jsonl`, `*.parquet` or a Hugging Face dataset on disk; empty = generated samples.
        heldout_files: records to validate on.
        samples: number of generated samples; files tell theirs.
        tokens: of a pack, at most.
        per_step: packs of an optimiser step, on all ranks together.
        over_long: what becomes of samples longer than a pack: "error", "skip", or "truncate_middle" (of the context).
        lookahead: samples that may wait for a pack with room; more fill packs better and shuffle less.
        cache: folder of tokenised samples, None = the user's cache.
        template: further variables of the chat template, such as `enable_thinking = false`.
    """

    files: tuple[str, ...] = ()
    heldout_files: tuple[str, ...] = ()
    samples: int = 1024
    tokens: int = 65_536
    per_step: int = 24
    over_long: str = "error"
    lookahead: int = 64
    cache: str | None = None
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "per_step", "lookahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.packs.{name}={getattr(self, name)} must be at least 1.")
        if self.over_long not in POLICIES:
            raise ValueError(f"data.packs.over_long={self.over_long!r} is unknown; use one of {list(POLICIES)}.")


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
        packs: packs instead of padded batches; `tokens_per_step` and `rows_per_forward` then mean nothing.
    """

    kinds: tuple[str, ...] = ()
    corpora: str | None = None
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    tokens_per_step: int = 32_768
    rows_per_forward: int = 16
    workers: int = 0
    loss_on: str = "response"
    packs: PackConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteConfig:
    """Where routes come from.

    Attributes:
        source: "head_router" (Elastic Attention), "layer_router" (Flux Attention), or one learned mask for all inputs:
            "static" (sampled like a router's logits), "hard_concrete" (PruLong), "alpha" (DuoAttention).
        init_std: of fresh routers.
        pooled_tokens: at each end of the prompt, what a router reads.
    """

    source: str = "head_router"
    init_std: float = 0.08
    pooled_tokens: int = 100


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
        pattern: what sparse heads read; None = the default of `ElasticConfig.for_model`. Another kind than streaming
            says so: `kind = "xattention"` or "triangle".
        full_pattern: what full heads read, "full" or XAttention.
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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    pattern: SparsePattern | None = None
    full_pattern: str | XAttentionConfig = "full"
    checkpoint_every: int = 50
    validate_every: int = 100
    validation_samples: int = 4
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("routes.source", self.routes.source, tuple(SOURCES)),
            ("objective.loss", self.objective.loss, (None, *LOSSES)),
            ("objective.constraint", self.objective.constraint, (None, *CONSTRAINTS)),
            ("data.loss_on", self.data.loss_on, ("response", "all")),
            ("precision", self.precision, ("bfloat16", "float32")),
            ("full_pattern", self.full_pattern if isinstance(self.full_pattern, str) else "full", ("full",)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {list(known)}.")
        for name, number in (("steps", self.steps), ("data.rows_per_forward", self.data.rows_per_forward)):
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1.")
        if self.data.kinds and self.data.packs is not None and self.data.packs.files:
            raise ValueError("data.kinds are of generated samples, data.packs.files replaces these; give one of them.")
        if not self.data.lengths:
            raise ValueError("data.lengths is empty; name at least one prompt length in tokens.")
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
