"""What the plugin costs where no head is sparse: vLLM with it and without it, in turns. Writes a record.

    python benchmarks/serving_overhead.py --json results/serving_overhead.json

Each way is an engine in a process of its own: "stock" (vLLM alone), "off" (the plugin, every head full because the
request says so) and "decided" (the routers read every prompt and decide that every head is full, so that all later
steps go through virtual sequences). Every round asks all of them the same new prompts, each time in another order, and
counts as one ratio to stock of its own round; so what else the machine does hits all alike. Beside the time stands the
processors' time of the engine, which a busy machine moves less. Exit code 1 if a token differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STOCK = "stock"
EXTRAS: dict[str, dict[str, Any]] = {
    STOCK: {},
    "off": {"elastic_routes": "off"},
    "decided": {"elastic_budget": -1e6},
}
RESAMPLES = 2000
CELLS = "640x2x1 640x1x48 640x4x32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A load: requests at the same time, their prompt tokens, and tokens of an answer."""

    tokens: int
    requests: int
    new_tokens: int

    @classmethod
    def read(cls, text: str) -> Cell:
        """From tokens x requests x new tokens, "640x2x1"."""
        tokens, requests, new_tokens = map(int, text.split("x"))
        return cls(tokens=tokens, requests=requests, new_tokens=new_tokens)


def serve_way(way: str, options: argparse.Namespace, connection: Any) -> None:
    """An engine that answers (prompts, new tokens) with (seconds passed, processor seconds), tokens, until it is sent
    None."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # which the plugin chooses too
    from vllm import LLM, SamplingParams

    from elastic_attention.models.embedded import resolve_model

    cells = [Cell.read(text) for text in options.cells]
    llm = LLM(
        resolve_model(options.model),
        skip_tokenizer_init=True,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=max(cell.tokens + cell.new_tokens for cell in cells) + 1,
        max_num_seqs=max(cell.requests for cell in cells),
        enable_prefix_caching=False,
        additional_config={} if way == STOCK else {"elastic_attention": {"routers": options.routers}},
    )
    connection.send(llm.llm_engine.model_config.get_vocab_size())
    while (asked := connection.recv()) is not None:
        prompts, new = asked
        params = SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=EXTRAS[way] or None
        )
        started, worked = time.perf_counter(), time.process_time()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started, time.process_time() - worked
        connection.send((seconds, [list(o.outputs[0].token_ids) for o in outputs]))


def measure_cell(engines: dict[str, Any], cell: Cell, chooser: random.Random, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of every round by way, and how many answers were not those of stock."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in engines}
    differing, order = 0, list(engines)
    for number in range(rounds + 1):
        prompts = [[chooser.randrange(1, size) for _ in range(cell.tokens)] for _ in range(cell.requests)]
        answers = {}
        for way in order:
            engines[way].send((prompts, cell.new_tokens))
            taken, answers[way] = engines[way].recv()
            if number:  # the first one warms up
                seconds[way].append(taken)
        differing += sum(a != b for way in engines for a, b in zip(answers[way], answers[STOCK], strict=True))
        order = [*order[1:], order[0]] if number % 2 else order[::-1]
    return {"seconds": seconds, "differing": differing}


def summarize(cell: Cell, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a way: median seconds, and median ratios to stock with 95% intervals (bootstrap over rounds)."""
    rows = []
    for way, own in measured["seconds"].items():
        row = {"way": way, **asdict(cell), "rounds": len(own), "differing": measured["differing"]}
        for place, name in enumerate(("seconds", "processor_seconds")):
            base = [taken[place] for taken in measured["seconds"][STOCK]]
            taken = [taken[place] for taken in own]
            ratios, chooser = [a / b for a, b in zip(taken, base, strict=True)], random.Random(0)
            drawn = sorted(statistics.median(chooser.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
            row |= {name: statistics.median(taken), f"{name}_ratio": statistics.median(ratios)}
            row |= {f"{name}_ratio_low": drawn[RESAMPLES // 40], f"{name}_ratio_high": drawn[-RESAMPLES // 40]}
        rows.append(row)
    return rows


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--routers", help="adapter folder; default: those that ship with the package")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cells", nargs="*", default=CELLS.split(), help="tokens x requests x new tokens")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cells; the record is written after each. Returns the exit code."""
    from elastic_attention.evaluation.session import choose_device, describe_device
    from elastic_attention.records import build_record, write_record

    options, began = parse_options(arguments), time.perf_counter()
    context = multiprocessing.get_context("spawn")
    engines, rows, size = {}, [], 0
    for way in EXTRAS:
        engines[way], end = context.Pipe()
        context.Process(target=serve_way, args=(way, options, end), daemon=True).start()
        size = engines[way].recv()  # one after the other: each looks how much memory there is
    for text in options.cells:
        cell = Cell.read(text)
        measured = measure_cell(engines, cell, random.Random(options.seed), size, options.rounds)
        rows += summarize(cell, measured)
        for row in rows[-len(engines) :]:
            shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
            print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)
        if options.json is not None:
            record = build_record(
                "benchmarks/serving_overhead.py",
                config={"dtype": options.dtype, "rounds": options.rounds, "eager": True},
                model={"name": options.model, "dtype": options.dtype},
                data="random tokens",
                device=describe_device(choose_device(None)),
                seed=options.seed,
                n=sum(row["rounds"] for row in rows if row["way"] == STOCK),
                metrics={"rows": rows},
                seconds=time.perf_counter() - began,
                bytes=None,
            )
            write_record(options.json, record)
    for connection in engines.values():
        connection.send(None)
    return int(any(row["differing"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
