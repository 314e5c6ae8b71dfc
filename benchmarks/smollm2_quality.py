"""Routers of SmolLM2 against every method with one mask for all inputs, at the same sparsity; one resumable command.

    python benchmarks/smollm2_quality.py --output runs/quality --record results/quality.json

Masks are trained by the same trainer, for the same steps on the same data, and everybody answers the same held-out
samples through the runner of `elastic-attn eval`. Masks are cut at the MSR of the routers over the suite, and once more
at the one on each sensitive kind. Adapters and answers stay in --output, so a run that was stopped goes on; processes
with the same command share the work, also with a training that has yet to write the adapters of `--routers` and
`--fa-xa`: masks are trained meanwhile, and each process says once what it waits for. `--max-minutes` ends the waiting
too; the record says whether it is complete.
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
OTHER_ROUTERS = {"xa_ssa": "head_router", "flux": "layer_router"}
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
        checkpoint_every=20,
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
    """Who is asked what beside `list_short_trainings`, the most important first."""
    msr, whole, few = options.aim, options.samples, min(options.few_samples, options.samples)
    masks = {
        place: [
            Contestant(
                method=Method(name=name, note="kind-routed" if place == "kind" else ""),
                samples=whole,
                recipe=aim_at(recipe, msr, source, recipe.steps) if source else None,
                like="routed",
                place=place,
            )
            for name, source in MASKS.items()
        ]
        for place in ("suite", "kind")
    }
    sparse = Contestant(method=Method(name="fa_xa", folder=options.fa_xa), samples=whole)
    if not options.fa_xa:
        trained = dataclasses.replace(change_source(recipe, "head_router", recipe.steps), pattern=XAttentionConfig())
        sparse = dataclasses.replace(sparse, recipe=trained)
    return [
        Contestant(method=Method(name="dense"), samples=whole),
        Contestant(method=Method(name="routed", folder=options.routers), samples=whole),
        *masks["suite"],
        sparse,
        *masks["kind"],
        Contestant(method=Method(name="all_sparse"), samples=whole),
        Contestant(method=Method(name="random", target=msr), samples=whole),
        Contestant(method=Method(name="routed", folder=options.routers, decode="full", note="full"), samples=few),
        *(Contestant(method=Method(name=name), samples=few) for name in ("xattention", "triangle_mix")),
    ]


def list_short_trainings(recipe: Recipe, options: argparse.Namespace) -> list[Contestant]:
    """Routers and masks that aim at other sparsities (the frontier), then routers of another pair or granularity."""
    few = min(options.few_samples, options.samples)
    rows = []
    small = pack_steps(recipe, options.frontier_tokens, options.frontier_tokens)
    for target in options.targets:
        for name, source in (("routed", "head_router"), ("static", "static")):
            aimed = aim_at(small, target, source, options.frontier_steps)
            rows.append(Contestant(method=Method(name=name, target=target, note="frontier"), recipe=aimed, samples=few))
    for name, source in OTHER_ROUTERS.items():
        trained = change_source(recipe, source, options.short_steps)
        if name == "xa_ssa":
            trained = dataclasses.replace(trained, full_pattern=XAttentionConfig())
        rows.append(Contestant(method=Method(name=name), recipe=trained, samples=few))
    return rows


def pack_steps(recipe: Recipe, tokens: int, pack_tokens: int) -> Recipe:
    """The recipe with `tokens` a step in packs of at most `pack_tokens`."""
    packs = dataclasses.replace(recipe.data.packs, tokens=pack_tokens, per_step=max(1, tokens // pack_tokens))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, packs=packs))


def compare_scores(study: Study, mastered: Sequence[str]) -> list[Row]:
    """What routers gain over each mask on the kinds that dense masters, macro-averaged, with paired 95% intervals.

    Returns:
        router, mask, same_msr_on ("suite" or "kind"), kinds ("all", "sensitive", "robust"; of "kind" only sensitive
        ones), n, msr_router, msr_mask, value, low, high.
    """
    rows = []
    for (router, name, place), labels in study.cuts.items():
        if not all(label in study.answers for label in (router, *labels)):
            continue
        pair = [study.answers[router]], [[line for label in labels for line in study.answers[label]]]
        for kinds, is_wanted in KIND_GROUPS.items():
            ours, theirs = (
                pick(lines, lambda line, is_wanted=is_wanted: line.task in mastered and is_wanted(line))
                for lines in pair
            )
            gain = estimate(ours, theirs)
            if gain is not None:
                row = {"router": router, "mask": name, "same_msr_on": place, "kinds": kinds, "n": len(theirs[0])}
                row |= {"msr_router": mean(ours[0], "msr"), "msr_mask": mean(theirs[0], "msr")}
                rows.append(row | dataclasses.asdict(gain))
    return [row for row in rows if row["same_msr_on"] == "suite" or row["kinds"] == "sensitive"]


def summarize(study: Study, samples: int) -> Row:
    """Rows by method over the kinds that dense masters, rows by kind with a column a method, and gains over masks."""
    asked = [m for m in study.methods.values() if not m.note.startswith("kind-")]
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
    }


def mean(lines: Sequence[Line], key: str) -> float:
    """Of a number of the lines."""
    return sum(getattr(line, key) for line in lines) / len(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-head-router.toml")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--routers", help="adapter of FA-SSA, waited for if need be; default: what ships")
    parser.add_argument("--fa-xa", help="adapter of FA-XA, waited for if need be; default: trained here")
    parser.add_argument("--record", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--samples", type=int, default=402, help="held-out samples of each kind")
    parser.add_argument("--few-samples", type=int, default=120, help="of each kind, for what nobody's verdict rests on")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the prompts")
    parser.add_argument("--steps", type=int, help="of the masks, and of FA-XA where it is trained here")
    parser.add_argument("--short-steps", type=int, default=160, help="of routers with other patterns or granularity")
    parser.add_argument("--frontier-steps", type=int, default=60, help="of each point of the frontier")
    parser.add_argument("--frontier-tokens", type=int, default=32_768, help="tokens of such a step")
    parser.add_argument("--pack-tokens", type=int, help="of a pack; steps keep their tokens. Default: the recipe's")
    parser.add_argument("--aim", type=float, default=0.77, help="MSR that masks train for; cut at the routers' own")
    parser.add_argument("--targets", type=float, nargs="*", default=list(TARGETS))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    recipe = load_recipe(options.recipe)
    data = dataclasses.replace(recipe.data, workers=options.workers)
    recipe = dataclasses.replace(recipe, steps=options.steps or recipe.steps, data=data)
    if options.pack_tokens:
        recipe = pack_steps(recipe, data.packs.tokens * data.packs.per_step, options.pack_tokens)
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
        study.take_all(list_contestants(recipe, options) + list_short_trainings(recipe, options))
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
            "aim": options.aim,
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
