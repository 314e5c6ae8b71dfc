"""What follows from the seconds of a training step: FLOPs, scaling, and the hours of the paper's run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from model_bench import MODELS
from training_loads import RESPONSE_TOKENS

from elastic_attention import ElasticConfig
from elastic_attention.patterns import build_pattern
from elastic_attention.training.parallel.sharding import find_layers

PEAK_FLOPS = 989e12  # of an H200 in bfloat16, by its data sheet
PAPER = {"steps": 300, "hours": 12.0, "gpus": 8, "gpu": "A800"}
PACKS_PER_STEP = (24, 48)
CELL = (
    "model", "layers", "tokens", "gpus", "sequence", "weights", "load", "way", "memory", "whole_layers",
    "is_compiled", "fast_gradients",
)  # fmt: skip
Row = dict[str, Any]


def count_flops(model: Any, lengths: list[int], msr: float, memory: str, whole_layers: int) -> tuple[float, float]:
    """FLOPs of a pack that the loss and its gradient need, and those of recomputation."""
    config, layers = model.config, find_layers(model)
    linear = 2.0 * sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2) * sum(lengths)
    last = 2.0 * config.vocab_size * config.hidden_size * sum(min(RESPONSE_TOKENS, n // 2) for n in lengths)
    product = 2.0 * config.head_dim * config.num_attention_heads * len(layers)  # of a pair, in all heads
    pattern = build_pattern(ElasticConfig.for_model(model).sparse_pattern)
    causal = sum(n * (n + 1) // 2 for n in lengths)
    read = sum(pattern.count_pairs(0, n) for n in lengths)
    forward, backward = 2 * product * causal, 4 * product * (msr * read + (1 - msr) * causal)
    again = backward / 4 + last  # the backward makes the scores and the logits once more
    if memory != "all":
        share = 1 - whole_layers / len(layers)
        # The last product of a layer gives nothing that a backward asks for, so it is left out.
        skipped = 2.0 * config.hidden_size * config.intermediate_size * len(layers) * sum(lengths)
        again += share * (linear - skipped + (forward if memory == "layers" else 0.0))
    return 2 * linear + 2 * last + forward + backward, again


def add_scaling(rows: list[Row]) -> None:
    """Tokens a second and GPU against the best cell of one GPU with the same load, way and kernels."""
    same = ("model", "layers", "tokens", "load", "way", "is_compiled", "fast_gradients")
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        key = tuple(row[name] for name in same)
        if row["gpus"] == 1:
            best[key] = max(best.get(key, 0.0), row["tokens_per_second_per_gpu"])
    for row in rows:
        alone = best.get(tuple(row[name] for name in same))
        row["scaling_efficiency"] = None if alone is None else row["tokens_per_second_per_gpu"] / alone


def estimate_hours(rows: list[Row]) -> list[Row]:
    """Hours for the paper's steps at the rate of each cell of the mixed load, which costs the mean of all packs."""
    found = []
    for row in rows:
        if row["load"] != "mixed" or row["layers"] != MODELS[row["model"]][1]["num_hidden_layers"]:
            continue
        for packs in PACKS_PER_STEP:
            gpu_hours = PAPER["steps"] * packs * row["tokens"] / row["tokens_per_second_per_gpu"] / 3600
            found.append(
                {key: row[key] for key in CELL}
                | {
                    "steps": PAPER["steps"],
                    "packs_per_step": packs,
                    "gpu_hours": gpu_hours,
                    "hours": gpu_hours / row["gpus"],
                    "hours_on_8_gpus_at_this_rate": gpu_hours / 8,
                    "paper_gpu_hours": PAPER["hours"] * PAPER["gpus"],
                }
            )
    return found


def measure_matmul(device: torch.device) -> float:
    """FLOP/s of a large bfloat16 product of random numbers."""
    size, seconds = 8192 if device.type == "cuda" else 512, []
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    for _ in range(12):
        wait_for(device)
        start = time.perf_counter()
        a @ b
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
