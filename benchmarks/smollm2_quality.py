"""Train routers and static masks for SmolLM2 at several sparsities and compare their quality; one resumable command.

    python benchmarks/smollm2_quality.py --output runs/quality --record results/quality.json

Every stage keeps its files under --output, so a run that was stopped goes on where it was. `--max-minutes` stops in
time; the record is written once every method has scored every sample.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from elastic_attention import ElasticConfig, attach
from elastic_attention.evaluation.decoding import score_through_cache
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.quality import SampleScore, SuiteConfig, draw_suite, score_method
from elastic_attention.evaluation.summary import summarize_methods
from elastic_attention.models.answers import AnswerBatch
from elastic_attention.models.loading import load_model
from elastic_attention.records import build_record, write_record
from elastic_attention.training.recipe import Interval, Recipe, load_recipe
from elastic_attention.training.trainer import train

ROOT = Path(__file__).parent.parent
TARGETS = (0.6, 0.7, 0.8, 0.9, 0.95)


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


def show(method: Method, scores: list[SampleScore]) -> None:
    """One line a method, and one a kind."""
    kinds = sorted({s.kind for s in scores})
    by_kind = {k: [s for s in scores if s.kind == k] for k in kinds}
    mean = sum(s.score for s in scores) / len(scores)
    print(f"{method.label}: score {mean:.3f} msr {sum(s.msr for s in scores) / len(scores):.3f}", flush=True)
    for kind, group in by_kind.items():
        msr = sum(s.msr for s in group) / len(group)
        print(f"  {kind:14s} {sum(s.score for s in group) / len(group):.3f} msr {msr:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-head-router.toml")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--record", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--samples", type=int, default=400, help="held-out samples of each kind")
    parser.add_argument("--steps", type=int, help="of the main run and of the static mask beside it")
    parser.add_argument("--frontier-steps", type=int, default=40, help="of each point of the frontier")
    parser.add_argument("--frontier-tokens", type=int, default=32_768, help="tokens of such a step")
    parser.add_argument("--frontier-samples", type=int, default=60, help="held-out samples of each kind there")
    parser.add_argument("--compare-at", type=float, help="MSR of static mask and random heads; default: as routed")
    parser.add_argument("--cache-samples", type=int, default=15, help="of each kind, scored through the cache")
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
    model, tokenizer = load_model(recipe.model, dtype=recipe.precision, device=options.device)

    def left() -> float:
        return options.max_minutes * 60 - (time.monotonic() - began)

    def run(plan: Recipe, name: str) -> bool:
        if (options.output / name / "adapter").exists():
            return True
        if left() <= 0:
            return False
        result = train(plan, options.output / name, max_seconds=left(), model=model, tokenizer=tokenizer)
        print(name, {k: v for k, v in result.items() if k != "validation"}, flush=True)
        for kind, values in (result.get("validation") or {"tasks": {}})["tasks"].items():
            print(f"  {kind:16s} " + " ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)
        return result["is_finished"]

    is_complete = run(recipe, "main")
    suite = SuiteConfig(samples=options.samples, corpora=recipe.data.corpora)
    batches = draw_suite(suite, tokenizer, options.workers) if is_complete and left() > 0 else []
    few = dataclasses.replace(suite, samples=min(options.frontier_samples, options.samples))
    few_batches = draw_suite(few, tokenizer, options.workers) if batches else []
    results: list[tuple[Method, list[SampleScore]]] = []

    def save(is_complete: bool) -> None:
        """The record of what is scored so far, so that a run that is killed leaves one."""
        metrics = summarize_methods(results) | {"is_complete": is_complete}
        record = build_record(
            "benchmarks/smollm2_quality.py",
            config={
                "suite": dataclasses.asdict(suite),
                "steps": recipe.steps,
                "frontier_steps": options.frontier_steps,
            },
            model=recipe.model,
            data={"kinds": list(suite.kinds), "split": suite.split},
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            seed=suite.seed,
            n=suite.samples * len(suite.kinds),
            metrics=metrics,
            seconds=time.monotonic() - began,
            bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        )
        write_record(options.record, record)

    def score(method: Method, on: list[AnswerBatch]) -> bool:
        if left() <= 0 or not on:
            return False
        # Routers read the keys that their own configuration pools; the other methods ask nobody.
        handle = attach(model, method.folder if method.name == "routed" else ElasticConfig.for_model(model))
        scores = score_method(method, handle, on, options.output / "scores" / f"{method.label}.jsonl")
        handle.detach()
        results.append((method, scores))
        show(method, scores)
        save(False)
        return True

    def score_cached(method: Method) -> bool:
        if left() <= 0:
            return False
        rows = [row for batch in few_batches for row in batch.rows if row.index < options.cache_samples]
        handle = attach(model, method.folder, decode=method.decode)
        scores = score_through_cache(handle, rows, method.label)
        handle.detach()
        results.append((method, scores))
        show(method, scores)
        return True

    def compare() -> bool:
        main = str(options.output / "main" / "adapter")
        for method in (Method(name="dense"), Method(name="all_sparse"), Method(name="routed", folder=main)):
            if not score(method, batches):
                return False
        msr = options.compare_at or round(sum(s.msr for s in results[-1][1]) / len(results[-1][1]), 3)
        static = f"main-static-{msr:.3f}"
        if not (
            score(Method(name="random", target=msr), batches)
            and run(aim_at(recipe, msr, "static", recipe.steps), static)
            and score(Method(name="static", target=msr, folder=str(options.output / static / "adapter")), batches)
        ):
            return False
        modes = [Method(name="routed", folder=main, decode=mode, note=f"cache-{mode}") for mode in ("sparse", "full")]
        if not all(score_cached(method) for method in modes):
            return False
        packs = recipe.data.packs
        packs = dataclasses.replace(packs, per_step=max(1, options.frontier_tokens // packs.tokens))
        short = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, packs=packs), checkpoint_every=0)
        for target in options.targets:
            for source, name in (("head_router", "routed"), ("static", "static")):
                folder = f"frontier-{source}-{target:.3f}"
                plan = aim_at(short, target, source, options.frontier_steps)
                method = Method(
                    name=name, target=target, folder=str(options.output / folder / "adapter"), note="frontier"
                )
                if not run(plan, folder) or not score(method, few_batches):
                    return False
        return True

    is_complete = is_complete and compare()
    if not is_complete:
        print("Stopped in time; run the same command again to go on.", flush=True)
    if results:
        save(is_complete)


if __name__ == "__main__":
    main()
