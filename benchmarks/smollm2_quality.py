"""Train routers and static masks for SmolLM2 at several sparsities and compare their quality; one resumable command.

    python benchmarks/smollm2_quality.py --output runs/quality --record results/quality.json

Everybody answers held-out samples through the runner of `elastic-attn eval`. Every stage keeps its files in --output,
so a run that was stopped goes on where it was. `--max-minutes` stops in time, between two batches; the record says
whether it is complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.plan import EvalPlan
from elastic_attention.evaluation.runner import run_plan
from elastic_attention.evaluation.session import Base, describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import BATCH_TOKENS, digest_adapter, fingerprint_weights
from elastic_attention.evaluation.suite_summary import summarize_run
from elastic_attention.records import build_record, write_record
from elastic_attention.tasks.suite import Suite, open_suite
from elastic_attention.training.recipe import Interval, Recipe, load_recipe
from elastic_attention.training.trainer import train

ROOT = Path(__file__).parent.parent
TARGETS = (0.6, 0.7, 0.8, 0.9, 0.95)
LENGTHS = (2048, 4096, 8000)


class TimeUp(Exception):
    """The minutes are used up; what is done is on the disk."""


def aim_at(recipe: Recipe, target: float, source: str, steps: int) -> Recipe:
    """The recipe with intervals whose middle is `target`: sensitive kinds .10 below robust ones on either side."""
    if source == "static":
        intervals = {c: Interval(low=target, high=target) for c in recipe.intervals}
    else:
        intervals = {
            "sensitive": Interval(low=target - 0.10, high=target - 0.05),
            "robust": Interval(low=min(target + 0.05, 1.0), high=min(target + 0.10, 1.0)),
        }
    routes = dataclasses.replace(recipe.routes, source=source)
    optimizer = dataclasses.replace(recipe.optimizer, learning_rate=0.1) if source == "static" else recipe.optimizer
    return dataclasses.replace(
        recipe, intervals=intervals, routes=routes, optimizer=optimizer, steps=steps, validate_every=0
    )


@dataclass(kw_only=True)
class Comparison:
    """The model, what was asked of it so far, and the time that is left."""

    base: Base
    suite: Suite
    output: Path
    lengths: tuple[int, ...]
    workers: int
    deadline: float
    lines: list[Line] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)

    def check_time(self, label: str = "") -> None:
        """Raise TimeUp past the deadline."""
        if time.monotonic() >= self.deadline:
            raise TimeUp

    def plan(self, methods: Sequence[Method], samples: int) -> EvalPlan:
        """`samples` of every kind, shared out over the lengths."""
        return EvalPlan(
            tasks=self.suite.tasks,
            lengths=self.lengths,
            samples=-(-samples // len(self.lengths)),
            methods=tuple(methods),
            batch_tokens=BATCH_TOKENS[self.base.device.type],
        )

    def train(self, recipe: Recipe, name: str) -> str:
        """The adapter of a run; trained, unless it is there."""
        folder = self.output / name
        if not (folder / "adapter").exists():
            self.check_time()
            left = self.deadline - time.monotonic()
            found = train(recipe, folder, max_seconds=left, model=self.base.model, tokenizer=self.base.tokenizer)
            print(name, {k: v for k, v in found.items() if k != "validation"}, flush=True)
            if not found["is_finished"]:
                raise TimeUp
        return str(folder / "adapter")

    def ask(self, name: str, methods: Sequence[Method], samples: int) -> list[Line]:
        """Ask methods `samples` of every kind, unless they have answered; `name` is that of the folder."""
        plan = self.plan(methods, samples)
        adapters = {m.label: digest_adapter(m.folder, self.base.model) for m in methods if m.folder is not None}
        identity = {"model": self.base.describe(), "weights": fingerprint_weights(self.base.model)}
        lines = run_plan(
            plan,
            self.suite,
            self.base.model,
            self.base.tokenizer,
            self.output / "answers" / name,
            identity=identity | {"adapters": adapters},
            workers=self.workers,
            advance=self.check_time,
        )
        assert lines is not None  # one shard is the whole run
        self.lines += lines
        self.methods += methods
        for method in methods:
            own = [line for line in lines if line.method == method.label]
            print(f"{method.label}: score {mean(own, 'score'):.3f} msr {mean(own, 'msr'):.3f}", flush=True)
        return lines

    def summarize(self, samples: int) -> dict[str, Any]:
        """Rows by method over what dense masters, and rows by kind with a column a method."""
        found = summarize_run(self.plan(self.methods, samples), self.suite, self.lines)
        kinds: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            for kind in self.suite.tasks:
                own = [line for line in self.lines if line.method == method.label and line.task == kind]
                row = kinds.setdefault(kind, {"kind": kind, "category": own[0].category, "n": len(own)})
                row |= {method.label: mean(own, "score"), f"msr {method.label}": mean(own, "msr")}
        return {"rows": found["mastered_rows"], "by_kind": list(kinds.values()), "mastered": found["mastered"]}


def mean(lines: Sequence[Line], key: str) -> float:
    """Of a number of the lines."""
    return sum(getattr(line, key) for line in lines) / len(lines)


def compare(run: Comparison, recipe: Recipe, options: argparse.Namespace) -> None:
    """Train and ask everything; raises TimeUp past the deadline."""
    main = run.train(recipe, "main")
    routed = Method(name="routed", folder=main)
    first = [Method(name="dense"), Method(name="all_sparse"), routed]
    first.append(dataclasses.replace(routed, decode="full", note="full"))
    lines = run.ask("main", first, options.samples)
    msr = options.compare_at or round(mean([line for line in lines if line.method == routed.label], "msr"), 3)
    mask = run.train(aim_at(recipe, msr, "static", recipe.steps), f"main-static-{msr:.3f}")
    others = [Method(name="random", target=msr), Method(name="static", target=msr, folder=mask)]
    run.ask("others", others, options.samples)
    packs = recipe.data.packs
    packs = dataclasses.replace(packs, per_step=max(1, options.frontier_tokens // packs.tokens))
    short = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, packs=packs), checkpoint_every=0)
    frontier = []
    for target in options.targets:
        for source, name in (("head_router", "routed"), ("static", "static")):
            aimed = aim_at(short, target, source, options.frontier_steps)
            folder = run.train(aimed, f"frontier-{source}-{target:.3f}")
            frontier.append(Method(name=name, target=target, folder=folder, note="frontier"))
    if frontier:
        run.ask("frontier", frontier, min(options.frontier_samples, options.samples))


def main() -> None:
    """Compare, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-head-router.toml")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--record", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--samples", type=int, default=402, help="held-out samples of each kind")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the prompts")
    parser.add_argument("--steps", type=int, help="of the main run and of the static mask beside it")
    parser.add_argument("--frontier-steps", type=int, default=40, help="of each point of the frontier")
    parser.add_argument("--frontier-tokens", type=int, default=32_768, help="tokens of such a step")
    parser.add_argument("--frontier-samples", type=int, default=60, help="held-out samples of each kind there")
    parser.add_argument("--compare-at", type=float, help="MSR of static mask and random heads; default: as routed")
    parser.add_argument("--targets", type=float, nargs="*", default=list(TARGETS))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--device")
    options = parser.parse_args()
    began = time.monotonic()
    recipe = load_recipe(options.recipe)
    recipe = dataclasses.replace(
        recipe,
        steps=options.steps or recipe.steps,
        data=dataclasses.replace(recipe.data, workers=options.workers),
    )
    run = Comparison(
        base=open_base(recipe.model, device=options.device, dtype=recipe.precision),
        suite=open_suite("mixture", data=recipe.data.corpora),
        output=options.output,
        lengths=tuple(options.lengths),
        workers=options.workers,
        deadline=began + options.max_minutes * 60,
    )
    is_complete = True
    try:
        compare(run, recipe, options)
    except TimeUp:
        is_complete = False
        print("Stopped in time; run the same command again to go on.", flush=True)
    if not run.methods:
        return
    record = build_record(
        "benchmarks/smollm2_quality.py",
        config={
            "plan": run.plan(run.methods, options.samples),
            "steps": recipe.steps,
            "frontier_steps": options.frontier_steps,
        },
        model=recipe.model,
        data={"suite": run.suite.name, **run.suite.describe()},
        device=describe_device(run.base.device),
        seed=1,
        n=len({line.key[1:] for line in run.lines}),
        metrics=run.summarize(options.samples) | {"is_complete": is_complete},
        seconds=time.monotonic() - began,
        bytes=measure_peak_bytes(run.base.device),
    )
    write_record(options.record, record)


if __name__ == "__main__":
    main()
