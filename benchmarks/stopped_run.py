"""The record of a run of `elastic-attn eval` that was stopped: of the samples that every method has answered.

    python benchmarks/stopped_run.py runs/eval --like other.json --json stopped.json

A run that is called again goes on and writes its own record; this is for one that will not. Needs no model. Device,
versions and commit are not in the folder: `--like` names a record of another run by the same package on that computer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elastic_attention.cli.eval import split_option
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Line, read_answers
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.plan import EvalPlan
from elastic_attention.evaluation.run_folder import RUN_FILE
from elastic_attention.evaluation.suite_run import shorten_folders, shorten_name
from elastic_attention.evaluation.suite_summary import summarize_run
from elastic_attention.records import Record, build_record, read_record, write_record
from elastic_attention.tasks.suite import open_suite

TAKEN = ("versions", "package")


def read_run(folder: Path) -> dict[str, Any]:
    """What a folder says of its run.

    Raises:
        ElasticAttentionError: it holds none.
    """
    try:
        run: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ElasticAttentionError(f"{folder} holds no run of elastic-attn eval ({error}).") from error
    return run


def read_plan(run: dict[str, Any]) -> EvalPlan:
    """The plan of a run."""
    plan = dict(run["plan"])
    for name in ("tasks", "lengths"):
        plan[name] = tuple(plan[name])
    return EvalPlan(**plan | {"methods": tuple(Method(**fields) for fields in plan["methods"])})


def pick_lines(plan: EvalPlan, folder: Path) -> tuple[EvalPlan, list[Line]]:
    """The plan without tasks and lengths that nobody answered, and the lines of the samples that all methods did.

    Raises:
        ElasticAttentionError: there is no such sample.
    """
    found, labels = read_answers(folder), [method.label for method in plan.methods]
    whole = {key[1:] for key in found if all((label, *key[1:]) in found for label in labels)}
    if not whole:
        raise ElasticAttentionError(f"{folder} holds no sample that all of {', '.join(labels)} have answered.")
    tasks = tuple(task for task in plan.tasks if any(sample[0] == task for sample in whole))
    lengths = tuple(length for length in plan.lengths if any(sample[1] == length for sample in whole))
    order = sorted(whole, key=lambda sample: (lengths.index(sample[1]), tasks.index(sample[0]), sample[2]))
    lines = [found[label, *sample] for label in labels for sample in order]
    return replace(plan, tasks=tasks, lengths=lengths), lines


def summarize_stopped(folder: Path, data: dict[str, Any], like: Record) -> Record:
    """The record; `data` opens the suite of the run, by name and option."""
    run = read_run(folder)
    asked = read_plan(run)
    plan, lines = pick_lines(asked, folder)
    routing = {"routing": run["routing"], "adapters": run["adapters"]}
    metrics = summarize_run(plan, open_suite(run["suite"], **data), lines)
    record = build_record(
        "benchmarks/stopped_run.py",
        config=shorten_folders({"plan": plan.describe(), **routing})
        | {"asked": {"tasks": asked.tasks, "lengths": asked.lengths}},
        model=run["model"] | {"name": shorten_name(run["model"]["name"])},
        data={"suite": run["suite"], **run["suite_data"]},
        device=like["device"],
        seed=plan.seed,
        n=metrics["counts"]["asked"],
        metrics=metrics,
        seconds=sum(line.seconds for line in lines),
        bytes=None,
    )
    return record | {key: like[key] for key in TAKEN}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--output of the run")
    parser.add_argument("--data", help="as in elastic-attn eval")
    parser.add_argument("--option", nargs="*", default=[], metavar="KEY=VALUE", help="as in elastic-attn eval")
    parser.add_argument("--like", type=Path, required=True, help="a record whose device, versions and commit it has")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    data: dict[str, Any] = {"data": options.data} if options.data else {}
    data |= dict(map(split_option, options.option))
    record = summarize_stopped(options.folder, data, read_record(options.like))
    for row in record["metrics"]["rows"]:
        print(f"{row['label']}: {row['n']} answers, score {row['score']:.3f}")
    write_record(options.json, record)


if __name__ == "__main__":
    main()
