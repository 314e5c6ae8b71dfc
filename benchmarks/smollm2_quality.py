"""Routers of SmolLM2 against every method with one mask for all inputs, at the same sparsity; one resumable command.

    python benchmarks/smollm2_quality.py --output runs/quality --record results/quality.json
    python benchmarks/smollm2_quality.py --part dial --output runs/quality --record results/quality_dial.json

Masks are trained by the same trainer, for the same steps on the same data, and everybody answers the same held-out
samples through the runner of `elastic-attn eval`. Masks are cut at the MSR of the routers over the suite, and once more
at the one on each sensitive kind. The dial is what one trained router can do without training: budgets make it more or
less sparse, each beside a mask cut at the MSR that it gives, and a triangle takes the place of its window (`fa_ta`).

Adapters and answers stay in --output, so a run that was stopped goes on; processes with the same command share the
work, also with a training that has yet to write the adapters of `--routers` and `--fa-xa`: masks are trained meanwhile,
and each process says once what it waits for. Past `--max-minutes` nobody is trained or asked, and the record holds what
is answered and says whether that is all. So several computers can share a study: copy what lies in their --output into
one folder, and run the command there with `--max-minutes 0`. Who asks nothing leaves in the record where it was asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_recipes import LEARNING_RATES
from paper_samples import KeptSuite
from paper_statistics import KIND_GROUPS, MASTERED, estimate, pick
from quality_study import Contestant, Study

from elastic_attention.config import XAttentionConfig
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import BATCH_TOKENS, shorten_folder
from elastic_attention.evaluation.suite_summary import summarize_run
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.tasks.suite import open_suite
from elastic_attention.training.recipe import Interval, Recipe, load_recipe

ROOT = Path(__file__).parent.parent
BUDGETS = (-4.0, -2.0, 1.0, 2.0)
LENGTHS = (2048, 4096, 8000)
# Columns of texts, which answers that have travelled may lack.
UNREAD = ("cut", "empty")
# Methods with one mask for all inputs, by the source that trains them; retrieval heads are ranked.
MASKS = {"duo_attention": "alpha", "static": "static", "prulong": "hard_concrete", "retrieval_heads": ""}
Row = dict[str, Any]


def learn_mask(recipe: Recipe, source: str, target: float) -> Recipe:
    """The recipe with one mask for all inputs in place of routers: its learning rate, and one MSR for all kinds."""
    return dataclasses.replace(
        recipe,
        routes=dataclasses.replace(recipe.routes, source=source),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=LEARNING_RATES[source]),
        intervals={category: Interval(low=target, high=target) for category in recipe.intervals},
        validate_every=0,
        checkpoint_every=20,
    )


def list_masks(recipe: Recipe, options: argparse.Namespace) -> list[Contestant]:
    """Routers and every method with one mask for all inputs, the most important first."""
    msr, whole, few = options.aim, options.samples, min(options.few_samples, options.samples)
    masks = {
        place: [
            Contestant(
                method=Method(name=name, note="kind-routed" if place == "kind" else ""),
                samples=whole,
                recipe=learn_mask(recipe, source, msr) if source else None,
                like="routed",
                place=place,
            )
            for name, source in MASKS.items()
        ]
        for place in ("suite", "kind")
    }
    sparse = Contestant(method=Method(name="fa_xa", folder=options.fa_xa), samples=whole)
    if not options.fa_xa:
        trained = dataclasses.replace(recipe, pattern=XAttentionConfig(), validate_every=0, checkpoint_every=20)
        sparse = dataclasses.replace(sparse, recipe=trained)
    return [
        Contestant(method=Method(name="dense"), samples=whole),
        Contestant(method=Method(name="routed", folder=options.routers), samples=whole),
        sparse,
        *masks["suite"],
        *masks["kind"],
        Contestant(method=Method(name="routed", folder=options.routers, decode="full", note="full"), samples=few),
        Contestant(method=Method(name="all_sparse"), samples=whole),
        Contestant(method=Method(name="random", target=msr), samples=whole),
        *(Contestant(method=Method(name=name), samples=few) for name in ("xattention", "triangle_mix")),
    ]


def list_dial(recipe: Recipe, options: argparse.Namespace) -> list[Contestant]:
    """The routers with a triangle and with other budgets, and sampled logits cut at the MSR of each budget."""
    whole, few = options.samples, min(options.few_samples, options.samples)
    routed = Method(name="routed", folder=options.routers)
    mask = Contestant(
        method=Method(name="static", note="dial"),
        samples=few,
        recipe=learn_mask(recipe, "static", options.aim),
        like=routed.label,
    )
    rows = [
        Contestant(method=Method(name="dense"), samples=whole),
        Contestant(method=routed, samples=whole),
        Contestant(
            method=Method(name="fa_ta", folder=options.routers, note="exchanged"), samples=whole, is_exchanged=True
        ),
        mask,
    ]
    for budget in options.budgets:
        method = dataclasses.replace(routed, note=f"budget{budget:+g}")
        rows += [
            Contestant(method=method, samples=few, budget=budget),
            dataclasses.replace(mask, like=method.label),
        ]
    return rows


PARTS = {"masks": list_masks, "dial": list_dial}


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


def compare_shares(study: Study, labels: Sequence[str], mastered: Sequence[str]) -> list[Row]:
    """What each method keeps of dense and of the routers on the kinds that dense masters, and on some of them.

    Returns:
        label, of ("dense" or "routed"), kinds ("all", "sensitive", "robust"), n, value, low, high: the ratio of macro
        averages on the samples that both answered, with its paired 95% interval.
    """
    rows = []
    for label in labels:
        for base in ("dense", "routed"):
            for kinds, is_wanted in KIND_GROUPS.items():
                ours, theirs = (
                    pick(
                        [study.answers.get(name, [])],
                        lambda x, is_wanted=is_wanted: x.task in mastered and is_wanted(x),
                    )
                    for name in (label, base)
                )
                share = estimate(ours, theirs, how="ratio") if label not in ("dense", base) else None
                if share is not None:
                    row = {"label": label, "of": base, "kinds": kinds, "n": len(ours[0])}
                    rows.append(row | dataclasses.asdict(share))
    return rows


def summarize(study: Study, samples: int) -> Row:
    """Rows by method over the kinds that dense masters, by kind with a column a method, shares, gains over masks."""
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
        "rows": [
            {key: value for key, value in row.items() if key not in UNREAD}
            | ({"budget": study.budgets.get(row["label"], 0.0)} if study.budgets and row["method"] == "routed" else {})
            for row in found["rows"]
        ],
        "by_kind": by_kind,
        "mastered": mastered,
        "shares": compare_shares(study, list(lines), mastered),
        "gains": compare_scores(study, mastered),
    }


def keep_origin(record: Row, path: Path) -> Row:
    """The record with device, versions and memory of the one in `path`, if any: that one was written where they are."""
    earlier = read_record(path) if path.exists() else record
    return record | {key: earlier[key] for key in ("device", "versions", "bytes")}


def mean(lines: Sequence[Line], key: str) -> float:
    """Of a number of the lines."""
    return sum(getattr(line, key) for line in lines) / len(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="masks", help="who is asked")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-head-router.toml")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--routers", help="adapter of FA-SSA, waited for if need be; default: what ships")
    parser.add_argument("--fa-xa", help="adapter of FA-XA, waited for if need be; default: trained here")
    parser.add_argument("--record", type=Path, default=Path("results/quality.json"))
    parser.add_argument("--samples", type=int, default=402, help="held-out samples of each kind")
    parser.add_argument("--few-samples", type=int, default=120, help="of each kind, for what nobody's verdict rests on")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the prompts")
    parser.add_argument("--steps", type=int, help="of the masks, and of FA-XA where it is trained here")
    parser.add_argument("--pack-tokens", type=int, help="of a pack; steps keep their tokens. Default: the recipe's")
    parser.add_argument("--aim", type=float, default=0.77, help="MSR that masks train for; cut at the routers' own")
    parser.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS), help="of routers on the dial")
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
    is_complete = study.take_all(PARTS[options.part](recipe, options))
    if not is_complete:
        print("Stopped in time; run the same command again to go on.", flush=True)
    if "dense" not in study.answers:
        return
    methods = [dataclasses.asdict(m) | {"folder": shorten_folder(m.folder)} for m in study.methods.values()]
    record = build_record(
        "benchmarks/smollm2_quality.py",
        config={
            "part": options.part,
            "methods": methods,
            "lengths": options.lengths,
            "samples": options.samples,
            "aim": options.aim,
            "steps": recipe.steps,
            "few_samples": options.few_samples,
            "budgets": options.budgets if options.part == "dial" else [],
        },
        model=recipe.model,
        data={"suite": study.suite.name, **study.suite.describe()},
        device=describe_device(base.device),
        seed=1,
        n=len({line.key[1:] for lines in study.answers.values() for line in lines}),
        metrics=summarize(study, options.samples) | {"is_complete": is_complete},
        seconds=sum(line.seconds for lines in study.answers.values() for line in lines),
        bytes=measure_peak_bytes(base.device),
    )
    write_record(options.record, record if study.has_asked else keep_origin(record, options.record))


if __name__ == "__main__":
    main()
