"""The packs of the training benchmark: random tokens, lengths as the trainer's own packing joins them."""

from __future__ import annotations

import statistics

import numpy as np
from model_bench import SEED

from elastic_attention.training.data.batch import PackedBatch, PackedSample, join_samples
from elastic_attention.training.data.packing import plan_packs
from elastic_attention.training.parallel.ranks import Ranks

RESPONSE_TOKENS = 256
_PLANNED_SAMPLES = 4096


def plan_lengths(tokens: int) -> list[list[int]]:
    """Packs of samples of tokens/8 to tokens, lengths drawn evenly, joined by the trainer's own packing."""
    lengths = np.random.default_rng(SEED).integers(tokens // 8, tokens, size=_PLANNED_SAMPLES, endpoint=True)
    packs = plan_packs(range(len(lengths)), lengths, capacity=tokens, lookahead=64)
    return [[int(lengths[i]) for i in pack] for pack in packs]


def draw_pack(load: str, tokens: int) -> list[int]:
    """Lengths of the samples of the pack that is timed, `tokens` together.

    Of the mixed packs the one whose attention costs the mean of all; its last sample is stretched to fill it.
    """
    if load == "single":
        return [tokens]
    packs = [pack[:-1] + [tokens - sum(pack[:-1])] for pack in plan_lengths(tokens)]
    costs = [sum(n * n for n in pack) for pack in packs]
    mean = statistics.fmean(costs)
    return packs[min(range(len(packs)), key=lambda i: abs(costs[i] - mean))]


def make_pack(lengths: list[int], vocabulary: int, step: int, ranks: Ranks) -> PackedBatch:
    """Random tokens, others for each group that shares a pack; the last ones of each sample are its response."""
    seed = step * ranks.data_size + ranks.data_rank
    generator = np.random.default_rng(seed)
    samples = []
    for i, length in enumerate(lengths):
        prompt = length - min(RESPONSE_TOKENS, length // 2)
        samples.append(
            PackedSample(
                tokens=generator.integers(0, vocabulary, size=length),
                context=(0, prompt),
                question=(prompt, prompt),
                response=(prompt, length),
                sample_id=seed * 1000 + i,
                category=("sensitive", "robust")[i % 2],
                task="random",
                weight=1 / (len(lengths) * ranks.data_size),
            )
        )
    return join_samples(samples)
