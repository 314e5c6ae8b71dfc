"""Routers of SmolLM2 against every method with one mask for all inputs, at the same sparsity; one resumable command.

    python benchmarks/smollm2_quality.py --output runs/quality --record results/quality.json

Masks are trained by the same trainer, for the same steps on the same data, and everybody answers the same held-out
samples through the runner of `elastic-attn eval`. Masks are cut at the MSR of the routers over the suite, and once more
at the one on each sensitive kind. Adapters and answers stay in --output, so a run that was stopped goes on; processes
with the same command share the work. `--max-minutes` stops in time; the record says whether it is complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paper_recipes import LEARNING_RATES
from paper_samples import KeptSuite
from paper_statistics import estimate, is_robust, is_sensitive, pick
from quality_study import Contestant, Study, TimeUp

from elastic_attention.config import XAttentionConfig
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import BATCH_TOKENS, shorten_folder
from elastic_attention.evaluation.suite_summary import summarize_run
from elastic_attention.records import build_record, write_record
from elastic_attention.tasks.suite import open_suite
from elastic_attention.training.recipe import Interval, Recipe, load_recipe

ROOT = Path(__file__).parent.parent
TARGETS = (0.6, 0.7, 0.8, 0.9, 0.95)
LENGTHS = (2048, 4096, 8000)
MASTERED = 0.5
# Methods with one mask for all inputs, by the source that trains them; retrieval heads are ranked.
MASKS = {"static": "static", "prulong": "hard_concrete", "duo_attention": "alpha", "retrieval_heads": ""}
OTHER_ROUTERS: dict[str, dict[str, Any]] = {
    "fa_xa": {"pattern": XAttentionConfig()},
    "xa_ssa": {"full_pattern": XAttentionConfig()},
    "flux": {},
}
KIND_GROUPS: dict[str, Callable[[Line], bool]] = {
    "all": lambda line: True,
    "sensitive": is_sensitive,
    "robust": is_robust,
}
Row = dict[str, Any]


def change_source(recipe: Recipe, source: str, steps: int) -> Recipe:
    """The recipe with another source of routes, its learning rate and number of steps."""
    rate = LEARNING_RATES.get(source, recipe.optimizer.learning_rate)
    return dataclasses.replace(
        recipe,
        routes=dataclasses.replace(recipe.routes, source=source),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=rate),
        steps=steps,
        validate_every=0,
        checkpoint_every=0,
    )


def aim_at(recipe: Recipe, target: float, source: str, steps: int) -> Recipe:
    """`change_source` with `target` in the middle of its intervals: of routers, robust kinds above and others below."""
    if source in LEARNING_RATES:
        intervals = {c: Interval(low=target, high=target) for c in recipe.intervals}
    else:
        intervals = {
            "sensitive": Interval(low=target - 0.10, high=target - 0.05),
            "robust": Interval(low=min(target + 0.05, 1.0), high=min(target + 0.10, 1.0)),
        }
    return dataclasses.replace(change_source(recipe, source, steps), intervals=intervals)


def list_contestants(recipe: Recipe, options: argparse.Namespace) -> list[Contestant]:
    """Who is asked what, the most important first."""
    msr, whole, few = options.compare_at, options.samples, min(options.few_samples, options.samples)
    rows = [Contestant(method=Method(name=name), samples=whole) for name in ("dense", "routed")]
    masks = []
    for name, source in MASKS.items():
        trained = aim_at(recipe, msr, source, recipe.steps) if source else None
        mask = Contestant(method=Method(name=name, target=msr), recipe=trained, samples=whole, cut="suite")
        masks.append(mask)
    rows += masks
    again = change_source(recipe, recipe.routes.source, recipe.steps)
    rows.append(Contestant(method=Method(name="routed", note="again"), recipe=again, samples=whole))
    for mask in masks:
        rows.append(dataclasses.replace(mask, method=dataclasses.replace(mask.method, note="kinds"), cut="kinds"))
    for name, parts in OTHER_ROUTERS.items():
        source = "layer_router" if name == "flux" else "head_router"
        short = dataclasses.replace(change_source(recipe, source, options.short_steps), **parts)
        rows.append(Contestant(method=Method(name=name), recipe=short, samples=few))
    rows.append(Contestant(method=Method(name="routed", decode="full", note="full"), samples=few))
    for name, target in (("all_sparse", None), ("random", msr), ("xattention", None), ("triangle_mix", None)):
        rows.append(Contestant(method=Method(name=name, target=target), samples=few))
    packs = recipe.data.packs
    packs = dataclasses.replace(packs, per_step=max(1, options.frontier_tokens // packs.tokens))
    small = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, packs=packs))
    for target in options.targets:
        for name, source in (("routed", "head_router"), ("static", "static")):
            aimed = aim_at(small, target, source, options.frontier_steps)
            method = Method(name=name, target=target, note="frontier")
            rows.append(Contestant(method=method, recipe=aimed, samples=few))
    return rows


def compare_scores(study: Study, mastered: Sequence[str]) -> list[Row]:
    """What routers gain over each mask on the kinds that dense masters, macro-averaged, with paired 95% intervals.

    Returns:
        router, mask, kinds ("all", "sensitive", "robust"), same_msr_on ("suite" or "kind"), msr_router, msr_mask, n,
        value, low, high; "kind" only for sensitive kinds, where the masks were cut once more.
    """
    rows = []
    for router in (label for label in ("routed", "routed-again") if label in study.answers):
        ours = [line for line in study.answers[router] if line.task in mastered]
        for name in MASKS:
            for place, note in (("suite", ""), ("kind", "kinds")):
                labels = [m.label for m in study.methods.values() if (m.name, m.note) == (name, note)]
                theirs = [line for label in labels for line in study.answers[label] if line.task in mastered]
                tests = (
                    {"sensitive": is_sensitive}
                    if note
                    else {"all": bool, "sensitive": is_sensitive, "robust": is_robust}
                )
                if not theirs or (note and router != "routed"):
                    continue
                for kinds, is_wanted in tests.items():
                    one, other = pick([ours], is_wanted), pick([theirs], is_wanted)
                    gain = estimate(one, other)
                    if gain is not None:
                        sizes = {
                            "msr_router": mean(one[0], "msr"),
                            "msr_mask": mean(other[0], "msr"),
                            "n": len(other[0]),
                        }
                        names = {"router": router, "mask": name, "kinds": kinds, "same_msr_on": place}
                        rows.append(names | sizes | dataclasses.asdict(gain))
    return rows


def summarize(study: Study, samples: int) -> Row:
    """Rows by method over the kinds that dense masters, rows by kind with a column a method, and gains over masks."""
    asked = [m for m in study.methods.values() if m.note != "kinds"]
    lines = {m.label: study.answers[m.label] for m in asked}
    by_kind: list[Row] = []
    for kind in study.suite.tasks:
        row: Row = {"kind": kind}
        for label, found in lines.items():
            own = [line for line in found if line.task == kind]
            if label == "dense":
                row |= {"category": own[0].category, "n": len(own)}
            row |= {label: mean(own, "score"), f"msr {label}": mean(own, "msr")}
        by_kind.append(row)
    mastered = [row["kind"] for row in by_kind if row.get("dense", 0.0) >= MASTERED]
    counted = [line for found in lines.values() for line in found if line.task in mastered]
    found = summarize_run(study.plan(asked, study.suite.tasks, samples), study.suite, counted)
    return {
        "rows": found["rows"],
        "by_kind": by_kind,
        "mastered": mastered,
        "gains": compare_scores(study, mastered),
        "sensitive_msr": [
            {"kinds": kinds, "msr": msr} for msr, kinds in (study.find_sensitive("routed") if "routed" in lines else [])
        ],
    }


def mean(lines: Sequence[Line], key: str) -> float:
    """Of a number of the lines."""
    return sum(getattr(line, key) for line in lines) / len(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-head-router.toml")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--record", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--samples", type=int, default=402, help="held-out samples of each kind")
    parser.add_argument("--few-samples", type=int, default=60, help="of each kind, for all but routers and masks")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the prompts")
    parser.add_argument("--steps", type=int, help="of the masks and of the routers beside those that ship")
    parser.add_argument("--short-steps", type=int, default=60, help="of routers with other patterns or granularity")
    parser.add_argument("--frontier-steps", type=int, default=40, help="of each point of the frontier")
    parser.add_argument("--frontier-tokens", type=int, default=32_768, help="tokens of such a step")
    parser.add_argument("--compare-at", type=float, default=0.758, help="MSR of the masks: the routers' own")
    parser.add_argument("--targets", type=float, nargs="*", default=list(TARGETS))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    recipe = load_recipe(options.recipe)
    recipe = dataclasses.replace(
        recipe,
        steps=options.steps or recipe.steps,
        data=dataclasses.replace(recipe.data, workers=options.workers),
    )
    base = open_base(recipe.model, device=options.device, dtype=recipe.precision)
    study = Study(
        base=base,
        suite=KeptSuite(open_suite("mixture", data=recipe.data.corpora), options.output / "samples"),
        corpora=recipe.data.corpora,
        output=options.output,
        lengths=tuple(options.lengths),
        samples=options.samples,
        workers=options.workers,
        batch_tokens=options.batch_tokens or BATCH_TOKENS[base.device.type],
        deadline=began + options.max_minutes * 60,
    )
    is_complete = True
    try:
        study.take_all(list_contestants(recipe, options))
    except TimeUp:
        is_complete = False
        print("Stopped in time; run the same command again to go on.", flush=True)
    if "dense" not in study.answers:
        return
    methods = [dataclasses.asdict(m) | {"folder": shorten_folder(m.folder)} for m in study.methods.values()]
    record = build_record(
        "benchmarks/smollm2_quality.py",
        config={
            "methods": methods,
            "lengths": options.lengths,
            "samples": options.samples,
            "steps": recipe.steps,
            "short_steps": options.short_steps,
            "frontier_steps": options.frontier_steps,
        },
        model=recipe.model,
        data={"suite": study.suite.name, **study.suite.describe()},
        device=describe_device(base.device),
        seed=1,
        n=len({line.key[1:] for lines in study.answers.values() for line in lines}),
        metrics=summarize(study, options.samples) | {"is_complete": is_complete},
        seconds=time.monotonic() - began,
        bytes=measure_peak_bytes(base.device),
    )
    write_record(options.record, record)


if __name__ == "__main__":
    main()
