"""What recipes of one model come to: train those that are not trained yet, ask all of them the same, and compare.

    python benchmarks/recipe_quality.py recipes/qwen2.5-coder-*.toml --lengths 4096,16384,30000 --samples 12 \
        --batch-tokens 16384 --json results/recipes_coder.json

Runs lie under --runs as `elastic-attn train` leaves them, answers under --output; after a kill the command goes on.
Several processes with the same command share the work, one GPU or more. The record holds what is answered so far.

A mask is asked at the MSR that the first router of the same pair had on these samples: its numbers are cut there.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mask_cutting import cut_mask
from paper_sharing import Busy, hold
from paper_statistics import KIND_GROUPS, Cell, estimate, find_mastered, pick

from elastic_attention.cli.train import train
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.plan import EvalPlan, parse_method
from elastic_attention.evaluation.runner import find_lines, run_plan
from elastic_attention.evaluation.session import Base, describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import digest_adapter, hush_transformers, make_plan, shorten_name
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.tasks.suite import Suite, check_tasks, open_suite
from elastic_attention.training.recipe import Recipe, load_recipe

Row = dict[str, Any]
ROUTERS = ("head_router", "layer_router")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A recipe and the folder of its run."""

    path: Path
    recipe: Recipe
    folder: Path

    @property
    def is_routed(self) -> bool:
        """Routers, and not one mask for all inputs?"""
        return self.recipe.routes.source in ROUTERS

    def settle(self, msr: float | None = None) -> Method:
        """How the evaluation asks it; `msr`: where a mask is cut, None = as the recipe says."""
        name, folder = "routed" if self.is_routed else "static", "adapter" if msr is None else f"mask-{msr:.3f}"
        return Method(name=name, target=msr, folder=str(self.folder / folder), note=self.path.stem)

    def prepare(self, method: Method) -> None:
        """Cut the mask that `settle` named; only while no other process reads it."""
        if method.target is not None:
            cut_mask(self.folder / "adapter", Path(str(method.folder)), method.target)

    @property
    def pair(self) -> str:
        """What full and sparse heads read, such as FA-SSA."""
        sparse = {"xattention": "XA", "triangle": "TA"}.get(getattr(self.recipe.pattern, "kind", ""), "SSA")
        return f"{'FA' if self.recipe.full_pattern == 'full' else 'XA'}-{sparse}"

    @property
    def record(self) -> Path:
        """What `elastic-attn train` says about it."""
        return self.folder / "train.json"

    @property
    def is_finished(self) -> bool:
        """Are all its steps done? A run that was stopped goes on."""
        return self.record.exists() and read_record(self.record)["metrics"]["is_finished"]

    def describe(self, label: str) -> Row:
        """Steps, speed and held-out sparsity; `label`: of its answers."""
        record = read_record(self.record)
        facts = {key: record["metrics"][key] for key in ("steps", "tokens", "seconds")}
        categories = (record["metrics"].get("validation") or {"categories": {}})["categories"]
        return {
            "label": label,
            "recipe": self.path.name,
            "source": self.recipe.routes.source,
            "pair": self.pair,
            **facts,
            "peak_bytes": record["bytes"],
            "commit": record["package"]["commit"],
            "categories": categories,
            "furthest_outside": max(
                (found["outside"] for found in categories.values() if "outside" in found), default=None
            ),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What every method is asked; each has a folder of answers of its own."""

    base: Base
    suite: Suite
    plan: EvalPlan
    output: Path
    workers: int

    def ask(self, method: Method) -> None:
        """Ask what is not answered yet."""
        identity = {"model": self.base.describe()}
        if method.folder or method.name == "routed":  # without a folder: what ships for the model
            identity["adapter"] = digest_adapter(method.folder, self.base.model)
        with hush_transformers():
            run_plan(
                self._plan(method),
                self.suite,
                self.base.model,
                self.base.tokenizer,
                self.output / method.label,
                identity=identity,
                workers=self.workers,
            )

    def find(self, method: Method) -> list[Line] | None:
        """All answers of a method; None as long as some are missing."""
        return find_lines(self._plan(method), self.suite, self.output / method.label)

    def _plan(self, method: Method) -> EvalPlan:
        return replace(self.plan, methods=(method,))


def summarize(answers: Mapping[str, Sequence[Line]], masks: Sequence[str]) -> dict[str, list[Row]]:
    """Where the dense model scores .50 or more: rows by method, and what each router gains over each mask; all cells.

    Args:
        answers: lines by label, "dense" among them.
        masks: labels of the methods with one mask for all inputs.
    """
    dense = [answers["dense"]]
    mastered = find_mastered(dense)
    rows, gains = [], []
    for label, lines in answers.items():
        counted = select(lines, mastered)
        row: Row = {"label": label, "n": len(counted), "esr_prefill": mean([x.esr_prefill or 0.0 for x in counted])}
        for kinds, is_wanted in KIND_GROUPS.items():
            own = [line for line in counted if is_wanted(line)]
            row |= {f"score_{kinds}": mean([x.score for x in own]), f"msr_{kinds}": mean([x.msr for x in own])}
            ratio = estimate([own], pick(dense, is_wanted), how="ratio", cells=mastered)
            row |= {f"relative_{kinds}_{key}": value for key, value in asdict(ratio).items()} if ratio else {}
            for mask in masks if label not in (*masks, "dense") else ():
                gain = estimate([own], pick([answers[mask]], is_wanted), cells=mastered)
                gains += [{"router": label, "mask": mask, "kinds": kinds, **asdict(gain)}] if gain else []
        rows.append(row)
    cells = [
        {"label": label, "task": task, "length": length, "n": len(own)}
        | {"score": mean([line.score for line in own]), "msr": mean([line.msr for line in own])}
        for label, lines in answers.items()
        for task, length in sorted({(line.task, line.length) for line in lines})
        if (own := select(lines, [(task, length)]))
    ]
    return {
        "rows": rows,
        "gains": gains,
        "cells": cells,
        "mastered": [{"task": t, "length": n} for t, n in sorted(mastered)],
    }


def select(lines: Sequence[Line], cells: Collection[Cell]) -> list[Line]:
    """The answers of these tasks and lengths."""
    return [line for line in lines if (line.task, line.length) in cells and not line.skipped]


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def forget_memory() -> None:
    """Let the peak memory of a run be its own."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+", help="recipes of one model")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="a folder for each recipe, by its name")
    parser.add_argument("--output", type=Path, default=Path("runs/recipe-answers"))
    parser.add_argument("--json", type=Path, required=True, help="the record")
    parser.add_argument(
        "--methods", nargs="*", default=[], help="further ones, such as routed: what ships for the model"
    )
    parser.add_argument("--suite", default="mixture")
    parser.add_argument("--data", type=Path, default=Path(".data/corpora"))
    parser.add_argument("--tasks", nargs="*", default=[], help="default: all of the suite")
    parser.add_argument("--lengths", default="", help="in tokens, with commas")
    parser.add_argument("--samples", type=int, default=40, help="of each task and length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    runs = [Run(path=p, recipe=load_recipe(p), folder=options.runs / p.stem) for p in options.recipes]
    if len(names := {run.recipe.model for run in runs}) > 1:
        parser.error(f"these recipes train {len(names)} models, {', '.join(sorted(names))}; compare those of one.")
    base = open_base(runs[0].recipe.model, device=options.device, dtype=runs[0].recipe.precision)
    suite, others = open_suite(options.suite, data=options.data), [parse_method(w) for w in ("dense", *options.methods)]
    plan = make_plan(
        base,
        suite,
        tasks=check_tasks(suite, options.tasks),
        lengths=tuple(int(length) for length in options.lengths.split(",") if length),
        samples=options.samples,
        methods=tuple(others),
        seed=options.seed,
        batch_tokens=options.batch_tokens,
    )
    questions = Questions(base=base, suite=suite, plan=plan, output=options.output, workers=options.workers)

    def find_method(run: Run) -> Method:
        """How a run is asked: a mask where the first router of its pair is, once that one is known.

        Raises:
            Busy: it is not known yet.
        """
        first = next((other for other in runs if other.is_routed and other.pair == run.pair), None)
        if run.is_routed or first is None:
            return run.settle()
        dense, routed = questions.find(others[0]), questions.find(first.settle())
        if dense is None or routed is None:
            raise Busy(first.path.stem)
        return run.settle(round(mean([line.msr for line in select(routed, find_mastered([dense]))]) or 0.0, 3))

    def work(item: Run | Method) -> str:
        """Train and ask, as far as no other process did or does; what was done."""
        if isinstance(item, Run) and not item.is_finished:
            with hold(item.folder):
                if not item.is_finished:
                    forget_memory()
                    train(item.path, output=item.folder, device=options.device, json=item.record)
        method = item if isinstance(item, Method) else find_method(item)
        if questions.find(method) is None:
            with hold(options.output / method.label):
                if isinstance(item, Run):
                    item.prepare(method)
                questions.ask(method)
        return method.label

    def save() -> None:
        """The record of what is answered; without the dense model's answers there is nothing to compare with."""
        answers = {method.label: questions.find(method) for method in others}
        labels: dict[str, Run] = {}
        for run in runs:
            with contextlib.suppress(Busy):
                if run.is_finished and (lines := questions.find(method := find_method(run))) is not None:
                    answers[method.label], labels[method.label] = lines, run
        found = {label: lines for label, lines in answers.items() if lines is not None}
        if "dense" not in found:
            return
        record = build_record(
            "benchmarks/recipe_quality.py",
            config={
                "plan": plan.describe() | {"methods": [method.label for method in others]},  # no paths
                "recipes": [run.path.name for run in labels.values()],
                "is_complete": len(labels) == len(runs),
            },
            model=(model := base.describe()) | {"name": shorten_name(model["name"])},
            data={"suite": suite.name, **suite.describe()},
            device=describe_device(base.device),
            seed=options.seed,
            n=sum(not line.skipped for lines in found.values() for line in lines),
            metrics=summarize(found, [label for label, run in labels.items() if not run.is_routed])
            | {"trainings": [run.describe(label) for label, run in labels.items()]},
            seconds=time.perf_counter() - began,
            bytes=measure_peak_bytes(base.device),
        )
        write_record(options.json, record)

    waiting: list[Run | Method] = [*others, *runs]
    while waiting:
        for item in list(waiting):
            try:
                label = work(item)
            except Busy:
                continue
            waiting.remove(item)
            print(f"{time.perf_counter() - began:.0f} s: {label}", flush=True)
            save()
        time.sleep(1 if waiting else 0)


if __name__ == "__main__":
    main()
