"""What recipes of one model come to: train those that are not trained yet, ask all of them the same, and compare.

    python benchmarks/recipe_quality.py recipes/qwen2.5-coder-*.toml --lengths 4096,16384,30000 --samples 40 \
        --json results/recipes_coder.json

Runs lie in --runs as `elastic-attn train --output` leaves them, answers in --output; the same command goes on after a
kill. `--shard 0/4` is the first of four processes that share both folders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paper_statistics import estimate, find_mastered, is_robust, is_sensitive, pick

from elastic_attention.cli.train import train
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.plan import Shard
from elastic_attention.evaluation.runner import run_plan
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import BATCH_TOKENS, digest_adapter, hush_transformers, make_plan
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.tasks.suite import check_tasks, open_suite
from elastic_attention.training.recipe import Recipe, load_recipe
from elastic_attention.training.sources import SOURCES
from elastic_attention.training.sources.static_mask import StaticMask

Row = dict[str, Any]
KINDS: dict[str, Callable[[Line], bool]] = {"all": lambda line: True, "sensitive": is_sensitive, "robust": is_robust}


def is_static(recipe: Recipe) -> bool:
    """Does the recipe learn one mask for all inputs?"""
    return issubclass(SOURCES[recipe.routes.source], StaticMask)


def name_pair(recipe: Recipe) -> str:
    """What full and sparse heads read, such as FA-SSA."""
    short = {"xattention": "XA", "triangle": "TA"}
    full = "FA" if recipe.full_pattern == "full" else "XA"
    return f"{full}-{short.get(getattr(recipe.pattern, 'kind', ''), 'SSA')}"


def describe_run(name: str, recipe: Recipe, folder: Path) -> Row:
    """Steps, speed and held-out sparsity of a run; trains it where it is missing."""
    if not (folder / "train.json").exists():
        train(Path(recipe_path(name)), output=folder, json=folder / "train.json")
    metrics = read_record(folder / "train.json")["metrics"]
    found = metrics.get("validation") or {"categories": {}}
    return {
        "recipe": name,
        "source": recipe.routes.source,
        "pair": name_pair(recipe),
        "steps": metrics["steps"],
        "tokens": metrics["tokens"],
        "seconds": metrics["seconds"],
        "categories": found["categories"],
        "furthest_outside": max((facts["outside"] for facts in found["categories"].values()), default=None),
    }


def summarize(answers: Mapping[str, list[Line]], static: set[str]) -> dict[str, Any]:
    """Rows by method, and what each router gains over each mask; only tasks and lengths where dense scores .50 count."""
    dense = [answers["dense"]]
    mastered = find_mastered(dense)
    rows, gains = [], []
    for label, lines in answers.items():
        counted = [line for line in lines if (line.task, line.length) in mastered and not line.skipped]
        row: Row = {"label": label, "n": len(counted)}
        for kinds, wanted in KINDS.items():
            own = [line for line in counted if wanted(line)]
            row[f"score_{kinds}"] = mean([line.score for line in own])
            row[f"msr_{kinds}"] = mean([line.msr for line in own])
            ratio = estimate([own], pick(dense, wanted), how="ratio", cells=mastered)
            row |= {f"relative_{kinds}_{key}": value for key, value in asdict(ratio).items()} if ratio else {}
        row["esr_prefill"] = mean([line.esr_prefill or 0.0 for line in counted])
        rows.append(row)
        if label in static or label == "dense":
            continue
        for other in sorted(static):
            for kinds, wanted in KINDS.items():
                gain = estimate([list(filter(wanted, lines))], pick([answers[other]], wanted), cells=mastered)
                gains += [{"router": label, "mask": other, "kinds": kinds} | asdict(gain)] if gain else []
    cells = [{"task": task, "length": length} for task, length in sorted(mastered)]
    return {"rows": rows, "gains": gains, "mastered": cells}


def mean(values: list[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def recipe_path(name: str) -> str:
    """Where the recipe of that name was found."""
    return _PATHS[name]


_PATHS: dict[str, str] = {}
