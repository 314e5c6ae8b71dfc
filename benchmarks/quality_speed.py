"""Quality against speed: what each method keeps, and how fast a model of 8B parameters is at the same sparsity.

    python benchmarks/quality_speed.py --record results/quality_speed.json
    elastic-attn report results/quality_speed.json --frontier docs/figures/quality_speed.svg

Joins two records: scores of a small model at a few thousand tokens, where reading less saves little time, and times of
a large one at the length named here. Both read the same at the same MSR (share of heads that read sink and window);
between two MSRs that were timed, seconds lie on a line, as they do where both ends were measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.records import build_record, read_record, write_record

ROOT = Path(__file__).parent.parent
# Methods whose sparse heads read sink and window, as those that were timed.
STREAMING = ("routed", "static", "prulong", "duo_attention", "retrieval_heads", "random", "all_sparse")
Row = dict[str, Any]


def pick_times(rows: Sequence[Row], *, model: str, tokens: int, batch: int) -> list[tuple[float, float]]:
    """(MSR, speed-up over the best dense kernel) of full heads beside sink and window, from MSR 0 on.

    Raises:
        ElasticAttentionError: fewer than two MSRs were timed.
    """
    wanted = {"model": model, "tokens": tokens, "batch": batch, "kernel": "elastic", "pair": "fa-ssa"}
    found = sorted((row["msr"], row["speedup"]) for row in rows if wanted.items() <= row.items())
    if len(found) < 2:
        raise ElasticAttentionError(
            f"No two MSRs of {model} were timed at {tokens:,} tokens and batch {batch}; name others of the record."
        )
    return found


def interpolate(times: Sequence[tuple[float, float]], msr: float) -> float:
    """The speed-up at `msr`: its inverse, the time, is a line between neighbours.

    Raises:
        ElasticAttentionError: the MSR lies outside those that were timed.
    """
    for (low, fast), (high, faster) in pairwise(times):
        if low <= msr <= high:
            share = (msr - low) / (high - low)
            return 1 / ((1 - share) / fast + share / faster)
    raise ElasticAttentionError(f"MSR {msr:.2f} lies outside those that were timed ({times[0][0]} to {times[-1][0]}).")


def join(quality: Row, prefill: Sequence[tuple[float, float]], decode: Sequence[tuple[float, float]]) -> Row:
    """rows: those of `quality` with both speed-ups, 1 of the dense model; left_out: labels of other methods."""
    rows, left_out = [], []
    for row in quality["rows"]:
        if row["method"] == "dense":
            rows.append(row | {"prefill_speedup": 1.0, "decode_speedup": 1.0})
        elif row["method"] in STREAMING:
            reads_all = row["decode"] == "full"
            decoding = interpolate(decode, 0.0 if reads_all else row["msr"])
            rows.append(row | {"prefill_speedup": interpolate(prefill, row["msr"]), "decode_speedup": decoding})
        else:
            left_out.append(row["label"])
    return {"rows": rows, "left_out": left_out}


def main(arguments: Sequence[str] | None = None) -> None:
    """Join, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", type=Path, default=ROOT / "results" / "quality.json")
    parser.add_argument("--speed", type=Path, default=ROOT / "results" / "gpu_model.json")
    parser.add_argument("--record", type=Path, default=ROOT / "results" / "quality_speed.json")
    parser.add_argument("--model", default="llama-3.1-8b fused", help="whose times, as the record names it")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--decode-batch", type=int, default=4, help="rows that decode together; prefill has one")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    quality, speed = read_record(options.quality), read_record(options.speed)
    shape = {"model": options.model, "tokens": options.tokens}
    prefill = pick_times(speed["metrics"]["rows"], batch=1, **shape)
    decode = pick_times(speed["metrics"]["decode"], batch=options.decode_batch, **shape)
    commits = {name: record["package"]["commit"] for name, record in (("quality", quality), ("speed", speed))}
    record = build_record(
        "benchmarks/quality_speed.py",
        config=shape | {"decode_batch": options.decode_batch, "commits": commits},
        model=f"scores: {quality['model']}; times: {options.model}, {options.tokens:,} tokens",
        data=quality["data"],
        device=speed["device"],
        seed=quality["seed"],
        n=quality["n"],
        metrics=join(quality["metrics"], prefill, decode),
        seconds=time.monotonic() - began,
        bytes=None,
    )
    write_record(options.record, record)


if __name__ == "__main__":
    main()
