"""What the plugin costs where no head is sparse: vLLM with it and without it, in turns. Writes a record.

    python benchmarks/serving_overhead.py --json results/serving_overhead.json

Each way is an engine in a process of its own: "off" (the plugin, every head full because the request says so),
"decided" (the routers read every prompt and decide that every head is full), "stock" (vLLM alone, with the block size
that the adapter asks for) and "default" (vLLM alone, with its own block size, whose price is the kernel's and not the
plugin's). Every round asks all of them the same new prompts, each time in another order, and counts as one ratio to
stock of its own round; so what else the machine does hits all alike. Where the system happens to put an engine's memory
matters as well, so all engines are started anew several times, and intervals come from these generations. Beside the
time stands the processors' time of the engine, which a busy machine moves less; several threads would spend theirs on
waiting for each other. Exit code 1 if a token of the plugin differs.
"""

from __future__ import annotations

import argparse
import itertools
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
EXTRAS: dict[str, dict[str, Any] | None] = {  # of requests; None = without the plugin
    "off": {"elastic_routes": "off"},
    "decided": {"elastic_budget": -1e6},
    STOCK: None,
    "default": None,
}
RESAMPLES = 2000
CELLS = "640x2x1 640x1x32 640x4x16"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What engines of one start took for a cell.

    Attributes:
        seconds: (passed, of processors) of every round, by way.
        differing: answers of the plugin that were not those of stock.
    """

    seconds: dict[str, list[tuple[float, float]]]
    differing: int


def serve_way(way: str, options: argparse.Namespace, block_size: int | None, connection: Any) -> None:
    """An engine that answers (prompts, new tokens) with (seconds passed, processor seconds), tokens, until it is sent
    None."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages: less depends on where memory lies
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
        block_size=block_size,
        kv_cache_memory_bytes=1 << 28,
        additional_config={} if EXTRAS[way] is None else {"elastic_attention": {"routers": options.routers}},
    )
    settings = llm.llm_engine.vllm_config
    connection.send((settings.model_config.get_vocab_size(), settings.cache_config.block_size))
    while (asked := connection.recv()) is not None:
        prompts, new = asked
        params = SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=EXTRAS[way]
        )
        started, worked = time.perf_counter(), time.process_time()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started, time.process_time() - worked
        connection.send((seconds, [list(o.outputs[0].token_ids) for o in outputs]))


def start_engines(options: argparse.Namespace, generation: int, blocks: dict[str, int]) -> tuple[dict[str, Any], int]:
    """Connections to one engine a way, and the size of the vocabulary; notes their block sizes in `blocks`."""
    context, ways = multiprocessing.get_context("spawn"), list(EXTRAS)
    engines, size = {}, 0
    for place in range(len(ways)):  # one after the other: each looks how much memory there is
        way = ways[(place + generation) % len(ways)]
        engines[way], end = context.Pipe()
        wanted = blocks["off"] if way == STOCK else None
        context.Process(target=serve_way, args=(way, options, wanted, end), daemon=True).start()
        size, blocks[way] = engines[way].recv()
    return engines, size


def measure_cell(engines: dict[str, Any], cell: Cell, chooser: random.Random, size: int, rounds: int) -> Generation:
    """Rounds of one generation."""
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
        plugged = [answers[way] for way, extra in EXTRAS.items() if extra is not None]
        differing += sum(a != b for own in plugged for a, b in zip(own, answers[STOCK], strict=True))
        order = [*order[1:], order[0]] if number % 2 else order[::-1]
    return Generation(seconds=seconds, differing=differing)


def summarize(cell: Cell, measured: Sequence[Generation]) -> list[dict[str, Any]]:
    """A row a way: median seconds, and median ratios to stock with 95% intervals (bootstrap over generations)."""
    rows = []
    for way in EXTRAS:
        rounds = sum(len(one.seconds[way]) for one in measured)
        row = {"way": way, **asdict(cell), "generations": len(measured), "rounds": rounds}
        for place, name in enumerate(("seconds", "processor_seconds")):
            ratios = [
                [own[place] / base[place] for own, base in zip(one.seconds[way], one.seconds[STOCK], strict=True)]
                for one in measured
            ]
            chooser = random.Random(0)
            drawn = sorted(_median(chooser.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
            row |= {name: _median([[taken[place] for taken in one.seconds[way]] for one in measured])}
            row |= {f"{name}_ratio": _median(ratios), f"{name}_ratio_low": drawn[RESAMPLES // 40]}
            row |= {f"{name}_ratio_high": drawn[-RESAMPLES // 40]}
        rows.append(row | {"differing": sum(one.differing for one in measured)})
    return rows


def _median(groups: Sequence[Sequence[float]]) -> float:
    return statistics.median(itertools.chain.from_iterable(groups))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--routers", help="adapter folder; default: those that ship with the package")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cells", nargs="*", default=CELLS.split(), help="tokens x requests x new tokens")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="of each generation")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cells; the record is written after each generation. Returns the exit code."""
    from elastic_attention.evaluation.session import choose_device, describe_device
    from elastic_attention.records import build_record, write_record

    options, began = parse_options(arguments), time.perf_counter()
    measured: dict[str, list[Generation]] = {text: [] for text in options.cells}
    chooser, blocks = random.Random(options.seed), {}
    for generation in range(options.generations):
        engines, size = start_engines(options, generation, blocks)
        for text, found in measured.items():
            found.append(measure_cell(engines, Cell.read(text), chooser, size, options.rounds))
        for connection in engines.values():
            connection.send(None)
        rows = [row for text, found in measured.items() for row in summarize(Cell.read(text), found)]
        rows = [row | {"block_size": blocks[row["way"]]} for row in rows]
        print(f"generation {generation + 1} of {options.generations}, {time.perf_counter() - began:.0f} s", flush=True)
        if options.json is not None:
            record = build_record(
                "benchmarks/serving_overhead.py",
                config={
                    "dtype": options.dtype,
                    "generations": generation + 1,
                    "rounds": options.rounds,
                    "threads": options.threads,
                    "eager": True,
                },
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
    for row in rows:
        shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
        print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)
    return int(any(row["differing"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
