"""What the host costs a small model: decoding with and without replayed steps, training by the size of packs.

    python benchmarks/small_models.py --json results/small_models.json

The model is SmolLM2-135M, whose kernels are so short that the host decides the pace. Decoding: `generate` with routers,
greedy, padded prompts of random tokens; both ways must say the same. Training: steps of one pack of random tokens,
samples of 1,024 to 8,000. Times are medians after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elastic_attention import attach
from elastic_attention.evaluation.session import describe_device, measure_peak_bytes, open_base
from elastic_attention.records import build_record, write_record
from elastic_attention.training.data.batch import PackedBatch, PackedSample, join_samples
from elastic_attention.training.engine import Engine
from elastic_attention.training.recipe import Interval, Recipe

SEED = 0
LENGTHS = (8000, 4096, 2048, 1024)  # of the samples of a pack, in turn
RESPONSE = 16
Row = dict[str, Any]


def take_time(run: Callable[[], Any], times: int) -> float:
    """Seconds of a call, median; the first two do not count."""
    seconds = []
    for _ in range(2 + times):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def measure_decoding(model: Any, cells: Sequence[tuple[int, int]], new_tokens: int, times: int) -> list[Row]:
    """A row for each (prompts, tokens of the longest one) and way."""
    rows: list[Row] = []
    handle = attach(model)
    for batch, length in cells:
        ids, mask = make_prompts(model, batch, length)
        options = {"attention_mask": mask, "do_sample": False, "pad_token_id": 0}
        first = partial(model.generate, ids, max_new_tokens=1, **options)
        whole = partial(model.generate, ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
        said = []
        for handle.replays_steps in (False, True):
            prefill, answer = take_time(first, times), take_time(whole, times)
            said.append(whole())
            row: Row = {"way": "replayed" if handle.replays_steps else "plain", "prompts": batch, "tokens": length}
            row |= {"new_tokens": new_tokens, "prefill_seconds": prefill, "answer_seconds": answer}
            row |= {"milliseconds_per_token": 1e3 * (answer - prefill) / (new_tokens - 1)}
            rows.append(row | {"is_same": torch.equal(said[0], said[-1])})
            print(rows[-1], flush=True)
    handle.detach()
    return rows


def make_prompts(model: Any, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and their padding mask, (batch, length) each; every prompt is 3 tokens shorter than the last."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(5, model.config.vocab_size, (batch, length), generator=generator)
    mask = torch.arange(length) >= 3 * torch.arange(batch)[:, None]
    return ids.to(model.device), mask.long().to(model.device)


def make_pack(tokens: int) -> PackedBatch:
    """A full pack of random tokens."""
    generator, left = np.random.default_rng(SEED), tokens
    samples: list[tuple[int, int]] = []  # tokens and, of them, prompt
    while left > RESPONSE:
        size = min(left, LENGTHS[len(samples) % len(LENGTHS)])
        prompt, left = size - RESPONSE, left - size
        samples.append((size, prompt))
    return join_samples(
        [
            PackedSample(
                tokens=generator.integers(5, 40_000, size=size),
                context=(0, prompt),
                question=(prompt, prompt),
                response=(prompt, size),
                sample_id=i,
                category=("sensitive", "robust")[i % 2],
                task="random",
                weight=1 / len(samples),
            )
            for i, (size, prompt) in enumerate(samples)
        ]
    )


def measure_training(model: Any, packs: Sequence[int], times: int, precision: str) -> list[Row]:
    """A row for each size of a pack."""
    intervals = {"sensitive": Interval(low=0.6, high=0.7), "robust": Interval(low=0.8, high=1.0)}
    engine, rows = Engine(Recipe(model="smollm2", steps=1000, intervals=intervals, precision=precision), model), []
    for tokens in packs:
        pack = make_pack(tokens).to(model.device)

        def take_step(pack: PackedBatch = pack) -> None:
            engine.start_step(0)
            engine.accumulate(pack)
            engine.finish_step()

        seconds = take_time(take_step, times)
        rows.append({"pack_tokens": tokens, "seconds": seconds, "tokens_per_second": len(pack.input_ids) / seconds})
        print(rows[-1], flush=True)
    engine.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record; 1 if replayed steps said something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8000], help="of a prompt")
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--packs", type=int, nargs="+", default=[8192, 16_384, 32_768, 65_536], help="in tokens")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True, help="the record")
    options = parser.parse_args(arguments)
    began, base = time.perf_counter(), open_base("smollm2")
    cells = [(batch, length) for length in options.tokens for batch in options.prompts]
    decoding = measure_decoding(base.model, cells, options.new_tokens, options.times)
    precision = str(base.dtype).removeprefix("torch.")
    training = measure_training(base.model, options.packs, options.times, precision)
    record = build_record(
        "benchmarks/small_models.py",
        config={"new_tokens": options.new_tokens, "sample_tokens": LENGTHS, "times": options.times},
        model=base.describe(),
        data="random tokens",
        device=describe_device(base.device),
        seed=SEED,
        n=len(decoding) + len(training),
        metrics={"decoding": decoding, "training": training},
        seconds=time.perf_counter() - began,
        bytes=measure_peak_bytes(base.device),
    )
    write_record(options.json, record)
    return int(not all(row["is_same"] for row in decoding))


if __name__ == "__main__":
    sys.exit(main())
