"""Do two runs of one plan agree? Compares two `--output` folders of `elastic-attn eval` and the records of both.

    torchrun --nproc-per-node 2 --no-python elastic-attn eval --dtype float32 ... --output runs/two --json two.json
    elastic-attn eval --dtype float32 ... --output runs/one --json one.json
    python benchmarks/run_agreement.py runs/one runs/two --records one.json two.json --record both.json

Answers are compared one by one: prompt, text, score, routes and bytes. Of the records everything counts that does not
say when, where or how fast. Exit code 1: something differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Key, Line, read_answers
from elastic_attention.records import Record, build_record, read_record, write_record

SIDES = ("prompt_sha256", "answer", "score", "routes", "msr", "kv_bytes", "is_cut")
"""What is compared of an answer."""


def read_run(folder: Path) -> dict[Key, Line]:
    """The answers of a run.

    Raises:
        ElasticAttentionError: there are none.
    """
    if not (found := read_answers(folder)):
        raise ElasticAttentionError(f"{folder} holds no answers; name an --output folder of elastic-attn eval.")
    return found


def compare_answers(first: Mapping[Key, Line], second: Mapping[Key, Line]) -> list[dict[str, Any]]:
    """A row a method: answers of each side, of both, and how many of those agree, in all and by what is compared.

    `is_equal` says that both sides hold the same questions, and the same answer to each.
    """
    rows = []
    for method in dict.fromkeys(key[0] for key in (*first, *second)):
        ours, theirs = ({key for key in side if key[0] == method} for side in (first, second))
        pairs = [(first[key], second[key]) for key in sorted(ours & theirs)]
        equal = {f"equal_{side}": sum(getattr(a, side) == getattr(b, side) for a, b in pairs) for side in SIDES}
        whole = sum(all(getattr(a, side) == getattr(b, side) for side in SIDES) for a, b in pairs)
        counts = {"n_first": len(ours), "n_second": len(theirs), "n": len(pairs), "n_equal": whole}
        rows.append({"label": method, **counts, **equal, "is_equal": ours == theirs and whole == len(pairs)})
    return rows


def list_differences(first: Record, second: Record) -> list[str]:
    """Where two records of an evaluation differ, as paths of keys; seconds never count."""
    names = ("model", "data", "config", "seed", "n", "metrics")
    return [path for name in names for path in _differ(first[name], second[name], name)]


def _differ(first: Any, second: Any, path: str) -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(key for key in first.keys() | second.keys() if "seconds" not in key)
        return [found for key in keys for found in _differ(first.get(key), second.get(key), f"{path}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for place, (x, y) in pairs for found in _differ(x, y, f"{path}/{place}")]
    return [] if first == second else [path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, write the record, say what differs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="--output folder of a run")
    parser.add_argument("second", type=Path, help="that of the other")
    parser.add_argument("--records", type=Path, nargs=2, required=True, help="--json files of both, in this order")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    first, second = map(read_record, options.records)
    rows = compare_answers(read_run(options.first), read_run(options.second))
    differences = list_differences(first, second)
    for row in rows:
        print(f"{row['label']}: {row['n_equal']} of {row['n']} answers equal ({row['n_first']} and {row['n_second']})")
    print(f"figures of the records that differ: {', '.join(differences[:5]) or 'none'}")
    if options.record:
        parts = [len(list(folder.glob("answers-*.jsonl"))) for folder in (options.first, options.second)]
        record = build_record(
            "benchmarks/run_agreement.py",
            config=first["config"] | {"parts": parts},
            model=first["model"],
            data=first["data"],
            device=" against ".join(f"{n} x {side['device']}" for n, side in zip(parts, (first, second), strict=True)),
            seed=first["seed"],
            n=sum(row["n"] for row in rows),
            metrics={"rows": rows, "differences": differences},
            seconds=first["seconds"] + second["seconds"],
            bytes=None,
        )
        # Those of the runs: comparing needs no device.
        write_record(options.record, record | {"versions": first["versions"], "package": first["package"]})
    return int(bool(differences) or not all(row["is_equal"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
