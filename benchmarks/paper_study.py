"""Claims of the papers at the size of small models: train what is missing, ask, and judge. One resumable command.

    python benchmarks/paper_study.py --list
    python benchmarks/paper_study.py methods width --output runs/paper --results results --max-minutes 10

Adapters and answers lie under --output, by recipe and by question, so that claims share them and the same command goes
on after a kill. Several processes, on several GPUs, may be given the same command: each does what no other is at.
The verdict follows from the intervals by a rule that was written before anything ran; until everything
is answered, and where no interval decides, it is "open". See docs/paper.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paper_claims import CLAIMS, Claim
from paper_figures import MEASURES
from paper_lab import Lab
from paper_recipes import Scale, describe_recipe, find_scale, fit_claim
from paper_rules import Found
from paper_sharing import Busy, TimeUp, hold
from paper_statistics import KIND_GROUPS, Seeds, estimate, find_mastered, give_verdict, pick

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes, open_base
from elastic_attention.evaluation.suite_run import BATCH_TOKENS
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.training.recipe import load_recipe

COMMAND = "benchmarks/paper_study.py"
ROOT = Path(__file__).parent.parent
Row = dict[str, Any]


def estimate_minutes(claim: Claim, scale: Scale, tasks: int = 13) -> tuple[float, int]:
    """(minutes on one H200 if nothing is there yet, number of trainings); a second of start for each run."""
    wanted = {(e.training, seed) for e in claim.entries if e.training for seed in range(e.seeds)}
    wanted = {key for key in wanted if key[0].source != "retrieval_heads"}
    trained = {(dataclasses.replace(t, target=None) if t.source in scale.masks else t, seed) for t, seed in wanted}
    training = len(trained) * (5 + scale.steps * scale.step_tokens / scale.training_rate)
    asked = sum(e.seeds for e in claim.entries) * tasks
    tokens = asked * sum(scale.samples[name] * sum(scale.lengths[name]) for name in claim.suites)
    reading = tokens / scale.reading_rate
    return (training + reading) / 60, len(trained)


def make_rows(answers: dict[str, Seeds]) -> list[Row]:
    """Score and ratio to dense with intervals, MSR, ESR, seconds: rows by entry, group of kinds and length."""
    rows = []
    dense = answers.get("dense")
    mastered = find_mastered(dense) if dense else None
    lengths = sorted({x.length for lists in answers.values() for lines in lists for x in lines})
    cuts = [(group, None) for group in KIND_GROUPS] + [("all", length) for length in lengths]
    for name, lists in answers.items():
        for group, length in cuts:

            def is_wanted(line: Any, test: Any = KIND_GROUPS[group], length: int | None = length) -> bool:
                return not line.skipped and test(line) and length in (None, line.length)

            own = pick(lists, is_wanted)
            score = estimate(own, cells=mastered)
            if score is None:
                continue
            ratio = estimate(own, pick(dense, is_wanted), how="ratio", cells=mastered) if dense else None
            lines = [line for one in own for line in one]
            row: Row = {"entry": name, "kinds": group, "length": length, "seeds": len(lists), "n": len(lines)}
            row |= {f"score_{key}": value for key, value in asdict(score).items()}
            row |= {f"relative_{key}": value for key, value in asdict(ratio).items()} if ratio else {}
            for key in ("msr", "esr_prefill", "esr_decode", "seconds"):
                values = [v for line in lines if (v := getattr(line, key)) is not None]
                row[key] = sum(values) / len(values) if values else None
            rows.append({key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def judge(claim: Claim, answers: dict[str, Seeds], figures: dict[str, Any]) -> dict[str, Any]:
    """Verdict and checks."""
    checks = claim.judge(Found(answers=answers, figures=figures))
    return {"verdict": give_verdict(checks), "rule": claim.rule, "checks": [check.describe() for check in checks]}


def study(lab: Lab, name: str, path: Path | None) -> str:
    """Do what is missing for a claim, write its record, and return the verdict.

    Raises:
        TimeUp: past the deadline; what is done is on the disk, and no record is written.
        Busy: other processes are at parts of it.
    """
    claim = fit_claim(CLAIMS[name], lab.scale)
    answers: dict[str, Seeds] = {}
    figures: dict[str, Any] = {}

    for answers in lab.gather(claim):
        entry = list(answers)[-1]
        lab.tell(name, entry, len(answers[entry]))
    with hold(lab.output / "judged" / name):
        if path is not None and path.exists() and path.stat().st_mtime > lab.began:
            return str(read_record(path)["metrics"]["verdict"])  # another process was quicker
        if claim.figures:
            figures = MEASURES[claim.figures](lab, claim, answers)
        judged = judge(claim, answers, figures)
        record = build_record(
            COMMAND,
            config={
                "claim": name,
                "scale": asdict(lab.scale),
                "recipe": describe_recipe(load_recipe(lab.recipes / lab.scale.recipe)),
                "entries": [asdict(entry) for entry in claim.entries],
            },
            model=lab.describe_model(),
            data={suite: lab.open(suite).describe() for suite in claim.suites},
            device=describe_device(lab.base.device),
            seed=0,
            n=sum(1 for _ in iterate_lines(answers)),
            metrics={
                "rows": make_rows(answers),
                "title": claim.title,
                "paper": claim.paper,
                **judged,
                "figures": {key: None if value is None else asdict(value) for key, value in figures.items()},
                "trainings": list(lab.trainings),
                "substitutes": {suite: dict(lab.open(suite).substitutes) for suite in claim.suites},
            },
            seconds=count_seconds(lab, answers),
            bytes=measure_peak_bytes(lab.base.device),
        )
        if path is not None:
            # Answers may come from elsewhere and another day than the verdict, whose memory says nothing then.
            asked = join_places(lab.places)
            is_here = asked.get("device", record["device"]) == record["device"]
            write_record(path, record | asked | {"bytes": record["bytes"] if is_here else None})
    for check in judged["checks"]:
        found = "nothing" if check["value"] is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**check)
        beside = "" if check["counts"] else " (beside)"
        shown = "holds" if check["holds"] else "fails" if check["refuted"] else "undecided"
        print(f"  {shown}: {check['check']}: {found}{beside}", flush=True)
    print(f"{name}: {judged['verdict']}, {lab.seconds:.0f} s", flush=True)
    return str(judged["verdict"])


def iterate_lines(answers: dict[str, Seeds]) -> Iterator[Line]:
    """The answers of all entries and seeds."""
    return (line for lists in answers.values() for lines in lists for line in lines)


def count_seconds(lab: Lab, answers: dict[str, Seeds]) -> float:
    """What trainings and answers of a claim took, whichever processes and claims they were made for."""
    trainings = {row["folder"]: row["seconds"] for row in lab.trainings}
    return sum(trainings.values()) + sum(line.seconds for line in iterate_lines(answers))


def join_places(places: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Device, model, package and versions of a record: the devices of all places, the rest of the last one."""
    devices = dict.fromkeys(place["device"] for place in places)
    return places[-1] | {"device": " and ".join(devices)} if places else {}


def study_all(lab: Lab, names: Sequence[str], results: Path | None) -> dict[str, str]:
    """Verdicts of the claims that were finished; what other processes are at comes again when the rest is done.

    Past the deadline nothing is trained or asked, but claims whose answers are all there are judged.
    """
    verdicts: dict[str, str] = {}
    waiting, late = list(names), []
    while waiting:
        for name in tuple(waiting):
            path = results / f"paper_{lab.scale.name}_{name}.json" if results else None
            try:
                verdicts[name] = study(lab, name, path)
            except Busy:
                continue
            except TimeUp:
                late.append(name)
            except ElasticAttentionError as error:
                print(f"{name} stays open: {error}", flush=True)
            waiting.remove(name)
        if waiting and lab.is_late:
            late += waiting
            break
        if waiting:
            time.sleep(1)
    if late:
        print(f"Stopped in time, before {', '.join(late)}; run the same command again to go on.", flush=True)
    return verdicts


def summarize(results: Path, model: str) -> None:
    """Write `paper_MODEL.json`, the verdicts and checks of all records of a model, for the tables; the rest is open."""
    found = [(name, results / f"paper_{model}_{name}.json") for name in CLAIMS]
    records = {name: read_record(path) for name, path in found if path.exists()}
    if not records:
        return
    rows: list[Row] = [
        {"claim": name, "title": claim.title, "paper": claim.paper, "rule": claim.rule, "verdict": "open", "n": 0}
        for name, claim in CLAIMS.items()
    ]
    for row in rows:
        if record := records.get(row["claim"]):
            config, metrics = record["config"], record["metrics"]
            row |= {key: metrics[key] for key in ("title", "paper", "rule", "verdict")} | {"n": record["n"]}
            lengths = {n for suite in CLAIMS[row["claim"]].suites for n in config["scale"]["lengths"][suite]}
            row |= {"steps": config["scale"]["steps"] if metrics["trainings"] else None, "lengths": sorted(lengths)}
    checks = [{"claim": name} | check for name, record in records.items() for check in record["metrics"]["checks"]]
    newest = max(records.values(), key=lambda record: record["created"])
    record = build_record(
        COMMAND,
        config={"claims": list(records)},
        model=newest["model"],
        data={suite: facts for record in records.values() for suite, facts in record["data"].items()},
        device=newest["device"],
        seed=0,
        n=sum(row["n"] for row in rows),
        metrics={"rows": rows, "checks": checks},
        seconds=sum(record["seconds"] for record in records.values()),
        bytes=newest["bytes"],
    )
    write_record(
        results / f"paper_{model}.json", record | {"package": newest["package"], "versions": newest["versions"]}
    )


def list_claims(scale: Scale) -> None:
    """Print what there is, and about how long it takes."""
    for name, claim in CLAIMS.items():
        minutes, trainings = estimate_minutes(fit_claim(claim, scale), scale)
        print(f"{name:16s} {minutes:5.1f} min alone, {trainings:2d} trainings  {claim.title} ({claim.paper})")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="one or more of --list, or all")
    parser.add_argument("--list", action="store_true", help="claims with their cost, and nothing else")
    parser.add_argument("--model", default="smollm2", help="smollm2, or a folder of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="of one model")
    parser.add_argument("--results", type=Path, help="folder of the records")
    parser.add_argument("--corpora", default=".data/corpora", help="folder of `make data`; '' = texts in the package")
    parser.add_argument("--samples", type=int, help="of each task and length of all suites; default: of the scale")
    parser.add_argument("--lengths", type=int, nargs="*", help="of all suites; default: of the model's scale")
    parser.add_argument("--seeds", type=int, help="most seeds of a training; default: of the model's scale")
    parser.add_argument("--steps", type=int, help="of every training; default: of the model's scale")
    parser.add_argument("--step-tokens", type=int, help="of every step; default: of the model's scale")
    parser.add_argument("--without", nargs="*", metavar="ENTRY", help="not asked; default: of the model's scale")
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--batch-tokens", type=int, help="rows times tokens of a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that make samples")
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.claims) - {*CLAIMS, "all"}):
        parser.error(f"unknown claims {', '.join(unknown)}; choose from {', '.join(CLAIMS)}")
    if not options.list and not options.claims:
        parser.error("name claims, all, or --list")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Study claims; 0 when all are finished."""
    options, began = parse_options(arguments), time.monotonic()
    scale = find_scale(options.model)
    if options.lengths:
        scale = dataclasses.replace(scale, lengths=dict.fromkeys(scale.lengths, tuple(options.lengths)))
    if options.samples:
        scale = dataclasses.replace(scale, samples=dict.fromkeys(scale.samples, options.samples))
    given = {key: getattr(options, key) for key in ("seeds", "steps", "step_tokens")}
    scale = dataclasses.replace(scale, **{key: value for key, value in given.items() if value})
    if options.without is not None:
        scale = dataclasses.replace(scale, without=tuple(options.without))
    if options.list:
        list_claims(scale)
        return 0
    base = open_base(options.model, device=options.device)
    lab = Lab(
        base=base,
        scale=scale,
        recipes=ROOT / "recipes",
        output=options.output,
        corpora=options.corpora or None,
        deadline=began + options.max_minutes * 60,
        batch_tokens=options.batch_tokens or BATCH_TOKENS.get(base.device.type, 1),
        workers=options.workers,
    )
    names = list(CLAIMS) if "all" in options.claims else list(dict.fromkeys(options.claims))
    verdicts = study_all(lab, names, options.results)
    if options.results:
        summarize(options.results, scale.name)
    return int(len(verdicts) < len(names))


if __name__ == "__main__":
    sys.exit(main())
