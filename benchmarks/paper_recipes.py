"""From a recipe of a model to those of the claims: how much is trained, on what, and towards which sparsity."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paper_claims import Claim, Training
from paper_statistics import ROBUST

from elastic_attention.config import XAttentionConfig
from elastic_attention.records import write_file
from elastic_attention.settings import to_dict
from elastic_attention.tasks import KINDS, TRAINED_KINDS
from elastic_attention.tasks.packages import sha256_of
from elastic_attention.training.recipe import DataConfig, Interval, PackConfig, Recipe

LEARNING_RATES = {"static": 0.1, "hard_concrete": 0.1, "alpha": 0.02}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A model and sizes that suit it.

    Attributes:
        name: of the model, in the names of records.
        recipe: of its head routers.
        lengths, samples: by suite, in tokens, and of each task and length.
        short: most tokens of the samples of short training.
        steps, step_tokens: of every training.
        training_rate, reading_rate: tokens a second on one H200, for estimates.
        seeds: most seeds of an entry.
        masks: recipes of masks by source; they are trained once and cut where a claim wants them. Those of other
            sources follow the head routers' recipe, and are trained for each target.
        without: names of entries that this model is not asked.
    """

    name: str
    recipe: str
    lengths: dict[str, tuple[int, ...]]
    samples: dict[str, int]
    short: int
    steps: int
    step_tokens: int
    training_rate: float
    reading_rate: float
    seeds: int = 3
    masks: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


SCALES = {
    "smollm2": Scale(
        name="smollm2",
        recipe="smollm2-head-router.toml",
        # Few tasks of the mixture are mastered at 8K, so samples at 2K and 4K say more for the same tokens.
        lengths={"mixture": (2048, 4096), "ruler": (2048, 4096, 8192), "almanac": (2048, 4096, 8192)},
        samples={"mixture": 64, "ruler": 24, "almanac": 24},
        short=2048,
        # More and smaller steps than the recipe's: multipliers and routers need steps, not tokens.
        steps=160,
        step_tokens=16_384,
        training_rate=57_000,
        reading_rate=200_000,
    ),
    "qwen2.5-coder": Scale(
        name="coder",
        recipe="qwen2.5-coder-head-router.toml",
        lengths={"mixture": (4096, 16_384, 30_000), "ruler": (4096, 16_384, 32_768), "almanac": (4096, 16_384, 32_768)},
        samples={"mixture": 12, "ruler": 8, "almanac": 6},
        short=8192,
        steps=150,
        step_tokens=65_536,
        training_rate=60_000,
        reading_rate=200_000,
        # A training costs what 40 do of SmolLM2's.
        seeds=1,
        masks={
            "static": "qwen2.5-coder-static.toml",
            "hard_concrete": "qwen2.5-coder-hard-concrete.toml",
            "alpha": "qwen2.5-coder-alpha.toml",
        },
        without=("target_0.5", "target_0.6", "routed_0.8", "static_0.8"),
    ),
}


def find_scale(model: str) -> Scale:
    """SmolLM2 by its name; any other model reads as far as Qwen2.5-Coder."""
    return SCALES["smollm2" if model == "smollm2" else "qwen2.5-coder"]


def fit_claim(claim: Claim, scale: Scale) -> Claim:
    """The claim with the entries and seeds of a scale; where there are fewer of them, its rule says so."""
    wanted = [entry for entry in claim.entries if entry.name not in scale.without]
    entries = tuple(dataclasses.replace(entry, seeds=min(entry.seeds, scale.seeds)) for entry in wanted)
    left_out = [entry.name for entry in claim.entries if entry.name in scale.without]
    limits = [f"without {', '.join(left_out)}"] if left_out else []
    if any(entry.seeds > scale.seeds for entry in wanted):
        limits.append(f"here with {scale.seeds} of the seeds")
    return dataclasses.replace(claim, entries=entries, rule="; ".join((claim.rule, *limits)))


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a record says of the recipe that trainings start from: all but places and sizes."""
    content = to_dict(recipe)
    keys = ("routes", "objective", "optimizer", "temperature", "intervals", "pattern")
    return {key: content[key] for key in keys} | {"kinds": list(recipe.data.kinds)}


def digest_files(recipe: Recipe) -> str:
    """Checksum of the records that a recipe reads; "" where samples are generated."""
    return "/".join(sha256_of(Path(file)) for file in recipe.data.packs.files)


def adapt_recipe(recipe: Recipe, wanted: Training, scale: Scale, folder: Path) -> Recipe:
    """The recipe of a scale with what a training says otherwise; its target is a number.

    Args:
        folder: for files that are parts of the recipe's.
    """
    intervals = set_intervals(recipe.intervals, wanted)
    routes = dataclasses.replace(
        recipe.routes,
        source=wanted.source,
        pooled_tokens=wanted.pooled or recipe.routes.pooled_tokens,
        hidden_factor=wanted.width or recipe.routes.hidden_factor,
    )
    rate = recipe.optimizer.learning_rate
    if wanted.source != recipe.routes.source:
        rate = LEARNING_RATES.get(wanted.source, rate)
    temperature = recipe.temperature
    if wanted.temperature:
        start, end = wanted.temperature
        temperature = dataclasses.replace(temperature, start=start, end=end)
    if wanted.noise is not None:
        temperature = dataclasses.replace(temperature, noise_end=wanted.noise)
    pairs: dict[str, dict[str, Any]] = {
        "fa_ssa": {},
        "fa_xa": {"pattern": XAttentionConfig()},
        "xa_ssa": {"full_pattern": XAttentionConfig()},
    }
    choose = _choose_files if recipe.data.packs.has_files else _choose_generated
    return dataclasses.replace(
        recipe,
        steps=scale.steps,
        intervals=intervals,
        data=choose(recipe.data, wanted, scale, set(intervals), folder),
        routes=routes,
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=rate),
        temperature=temperature,
        checkpoint_every=0,
        validate_every=0,
        validation_samples=1,
        **pairs[wanted.pair],
    )


def _choose_files(data: DataConfig, wanted: Training, scale: Scale, categories: set[str], folder: Path) -> DataConfig:
    packs = dataclasses.replace(data.packs, heldout_files=())
    if wanted.is_short:
        packs = dataclasses.replace(packs, tokens=scale.short, over_long="skip")
    if wanted.only:
        files = tuple(_keep_categories(Path(file), folder / wanted.only, categories) for file in packs.files)
        packs = dataclasses.replace(packs, files=files)
    return dataclasses.replace(data, packs=_fill_steps(packs, scale))


def _choose_generated(
    data: DataConfig, wanted: Training, scale: Scale, categories: set[str], folder: Path
) -> DataConfig:
    lengths = tuple(n for n in data.lengths if n <= scale.short) if wanted.is_short else data.lengths
    kinds = data.kinds
    if wanted.only:
        kinds = tuple(kind for kind in kinds or KINDS if TRAINED_KINDS[kind].category in categories)
    # Each sample about once, and each kind at each length equally often.
    turn = len(kinds or KINDS) * len(lengths)
    tokens = scale.steps * scale.step_tokens
    samples = turn * math.ceil(tokens / (sum(lengths) / len(lengths)) / turn)
    packs = dataclasses.replace(data.packs, samples=min(samples, data.packs.samples))
    return dataclasses.replace(data, lengths=lengths, kinds=kinds, packs=_fill_steps(packs, scale))


def _fill_steps(packs: PackConfig, scale: Scale) -> PackConfig:
    tokens = min(packs.tokens, scale.step_tokens)
    return dataclasses.replace(packs, tokens=tokens, per_step=scale.step_tokens // tokens)


def _keep_categories(file: Path, folder: Path, categories: set[str]) -> str:
    path = folder / f"{file.stem}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open(encoding="utf-8") as stream:
            write_file(path, "".join(x for x in stream if json.loads(x)["category"] in categories))
    return str(path)


def set_intervals(intervals: dict[str, Interval], wanted: Training) -> dict[str, Interval]:
    """The intervals of a training; a target is the middle, with .075 between it and each group of kinds."""
    if isinstance(wanted.target, float) and wanted.source in ("static", "hard_concrete", "alpha"):
        return {c: Interval(low=wanted.target, high=wanted.target) for c in intervals}
    found = dict(intervals)
    for category in intervals:
        is_robust_category = category in ROBUST
        if wanted.only and is_robust_category != (wanted.only == "robust"):
            del found[category]
        elif isinstance(wanted.target, float):
            low, high = (0.05, 0.10) if is_robust_category else (-0.10, -0.05)
            found[category] = Interval(low=min(wanted.target + low, 1.0), high=min(wanted.target + high, 1.0))
        elif wanted.sensitive is not None and not is_robust_category:
            found[category] = Interval(low=wanted.sensitive, high=wanted.sensitive)
    return found
