"""Decode of a whole model over caches of random values, and the largest batch that fits."""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sections import Bench
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.timing import capture_calls


@dataclass(kw_only=True)
class Clock:
    """Time that attention takes inside a forward: pairs of marks, on the device where there is one."""

    device: torch.device
    marks: list[tuple[Any, Any]] = field(default_factory=list)

    def mark(self) -> Any:
        """Now, in the order of the device's work."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds from one mark to another; both must have passed."""
        return begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin

    def take(self) -> float:
        """Seconds within all pairs since the last call."""
        total = sum(self.seconds_between(*pair) for pair in self.marks)
        self.marks = []
        return total


@dataclass(kw_only=True)
class ModelBench(Bench):
    """A run on one model."""

    model: Any
    clock: Clock
    dense: list[str]

    def add(self, section: str, *rows: dict[str, Any]) -> None:
        """Keep and print rows; each names the model."""
        super().add(section, *({"model": self.options.model, **row} for row in rows))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, KV heads, head dim."""
        config = self.model.config
        return config.num_hidden_layers, config.num_key_value_heads, config.head_dim

    @property
    def dense_bytes_per_token(self) -> int:
        """Keys and values of one token in the base model's cache."""
        layers, heads, head_dim = self.shape
        return layers * heads * head_dim * 2 * self.model.dtype.itemsize


class FilledLayer(CacheLayerMixin):
    """A full cache of random values; each new token takes the last place, so that every step reads the same bytes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory is there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Overwrite the last token."""
        assert self.keys is not None and self.values is not None
        self.keys[:, :, -1:] = key_states
        self.values[:, :, -1:] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens before the new one."""
        assert self.keys is not None
        return self.keys.shape[2] - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys and offset of a mask."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.get_seq_length() + 1

    get_max_cache_shape = get_max_length  # the name before transformers 5.20


def make_dense_step(bench: ModelBench, name: str, batch: int, tokens: int) -> Callable[[int], object]:
    """One greedy decode step of the base model over a cache of `tokens`, with the dense kernel `name`."""
    layers, heads, head_dim = bench.shape
    shape = (batch, heads, tokens, head_dim)
    cache = Cache(
        layers=[
            FilledLayer(*(torch.empty(shape, device=bench.device, dtype=bench.model.dtype).normal_() for _ in "kv"))
            for _ in range(layers)
        ]
    )
    ids = torch.zeros(batch, 1, dtype=torch.long, device=bench.device)
    positions = torch.full((batch, 1), tokens - 1, dtype=torch.long, device=bench.device)

    def step(_: int) -> None:
        out = bench.model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))

    return step


def time_step(bench: ModelBench, step: Callable[[int], object]) -> dict[str, Any]:
    """Median seconds of a decode step as a captured graph, or as it is without a GPU."""
    with torch.inference_mode():
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            graph = capture_calls(step, 1)
            call: Callable[[], object] = graph.replay
        else:
            call = functools.partial(step, 0)
        marks = []
        for _ in range(bench.options.steps + 1):
            begin = bench.clock.mark()
            call()
            marks.append((begin, bench.clock.mark()))
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = [bench.clock.seconds_between(*pair) for pair in marks[1:]]
    peak = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    return {"seconds": statistics.median(seconds), "peak_bytes": peak, "repeats": len(seconds)}


def count_step_bytes(model: Any) -> int:
    """Bytes of weights that a decode step reads: all but the embedding table."""
    table = model.get_input_embeddings().weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not table)


def measure_copy_rate(device: torch.device, count: int) -> float:
    """Bytes per second of a device-to-device copy, bytes read plus bytes written."""
    source, clock = torch.randn(count // 4, device=device), Clock(device=device)
    target = torch.empty_like(source)
    for _ in range(6):
        begin = clock.mark()
        target.copy_(source)
        clock.marks.append((begin, clock.mark()))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * source.nbytes / statistics.median(clock.seconds_between(*pair) for pair in clock.marks[1:])


def measure_decode(bench: ModelBench, handle: Any) -> None:
    """Decode steps over caches of random values, dense beside elastic, as captured graphs."""
    rate, weights = measure_copy_rate(bench.device, bench.options.copy_bytes), count_step_bytes(bench.model)
    bench.add("ceilings", {"name": "copy", "terabytes_per_second": rate / 1e12})
    for tokens, batch in bench.options.decode_cells:
        if bench.is_late("decode", tokens=tokens, batch=batch):
            continue
        cell, rows = {"tokens": tokens, "batch": batch}, []
        kv_bytes = batch * tokens * bench.dense_bytes_per_token
        for name in bench.dense:
            with handle.disabled():
                bench.model.set_attn_implementation(f"dense {name}")
                try:
                    row = time_step(bench, make_dense_step(bench, name, batch, tokens))
                except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
                    bench.note_missing("decode", name, error, **cell)
                    continue
            rows.append(cell | {"kernel": name, "msr": 0.0, "kv_bytes": kv_bytes, **row})
            _free(bench.device)
        best = min((row["seconds"] for row in rows), default=math.nan)
        for row in rows:
            bound = (weights + row["kv_bytes"]) / rate
            row |= {"tokens_per_second": batch / row["seconds"], "speedup": best / row["seconds"]}
            row |= {"bound_seconds": bound, "bound_share": bound / row["seconds"], "kv_bytes_dense": kv_bytes}
        bench.add("decode", *rows)
        bench.save()


def find_largest_batch(fits: Callable[[int], bool], guess: int) -> int:
    """The largest batch for which `fits` is true, from a guess that is nearly right; 0 if none is."""
    batch = max(1, guess)
    if fits(batch):
        while fits(batch + 1):
            batch += 1
        return batch
    while batch and not fits(batch):
        batch -= 1
    return batch


def measure_largest_batch(bench: ModelBench, handle: Any) -> None:
    """The most sequences of one length whose caches fit beside the weights and decode a step."""
    if bench.device.type != "cuda":
        bench.note_missing("batch", "largest batch", "needs a GPU")
        return
    tokens = bench.options.batch_tokens

    def fits(batch: int) -> bool:
        _free(bench.device)
        try:
            with torch.inference_mode(), handle.disabled():
                bench.model.set_attn_implementation(f"dense {bench.dense[-1]}")
                make_dense_step(bench, bench.dense[-1], batch, tokens)(0)
                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            return False
        return True

    free, _ = torch.cuda.mem_get_info()
    batch = find_largest_batch(fits, int(0.97 * free / (tokens * bench.dense_bytes_per_token)))
    bench.add("batches", {"tokens": tokens, "kernel": bench.dense[-1], "msr": 0.0, "largest_batch": batch})
    _free(bench.device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
