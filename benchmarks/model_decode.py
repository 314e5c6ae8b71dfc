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
from sections import Bench, Rows
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from elastic_attention.errors import BackendUnavailable, ElasticAttentionError
from elastic_attention.evaluation.timing import capture_calls
from elastic_attention.models.cache_layer import claim_layer
from elastic_attention.models.captured import CapturedDecoder
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes

SEED = 0


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
        super().add(section, *({"model": self.name, **row} for row in rows))

    @property
    def name(self) -> str:
        """The model's name, with what was done to it."""
        return self.options.model + (" fused" if self.options.fused else "")

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


def name_dense(kernel: str) -> str:
    """The name of a dense kernel among transformers' attention functions.

    "flash" must not be in it: transformers would look for a kernel of that name to download.
    """
    return "dense_" + kernel.replace("flash", "fa2").replace(" ", "_")


def draw_routes(ratio: float, layers: int, heads: int) -> Tensor:
    """(layers, heads) bool with the number of sparse heads nearest to `ratio` of all, drawn over all places."""
    count = round(ratio * layers * heads)
    order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(SEED))
    return (order < count).view(layers, heads)


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


def fill_cache(handle: Any, routes: Tensor, *, batch: int, tokens: int) -> Cache:
    """A cache of an attached model that holds `tokens` random tokens a sequence, routed as `routes` (L, G) says.

    The sequences of a batch hold the same values, in memory of their own; that makes filling quick.
    """
    cache, config = DynamicCache(), handle.config.base_model
    device, dtype = handle.model.device, handle.model.dtype
    for index, given in enumerate(routes):
        layer = claim_layer(cache, index, handle._make_layer)
        shape = (1, config.num_kv_heads, tokens, config.head_dim)
        keys, values = (torch.randn(shape, device=device, dtype=dtype).expand(batch, -1, -1, -1) for _ in "kv")
        layer.update(keys, values)
        layer.append(keys, values, None, [tokens] * batch)
        layer.store.assign(HeadRoutes(given.expand(batch, -1)))
        layer.store.evict()
    return cache


def make_elastic_step(bench: ModelBench, handle: Any, routes: Tensor, batch: int, tokens: int) -> Callable[[], object]:
    """One greedy decode step of the attached model as its own captured graph, over a filled cache."""
    cache = fill_cache(handle, routes, batch=batch, tokens=tokens - 1)
    first = torch.zeros(batch, dtype=torch.long, device=bench.device)
    decoder = CapturedDecoder(handle, cache, first, max_new_tokens=bench.options.steps + 2)
    return decoder.step


def time_step(bench: ModelBench, step: Callable[[], object]) -> dict[str, Any]:
    """Median seconds of a decode step."""
    marks = []
    with torch.inference_mode():
        for _ in range(bench.options.steps + 1):
            begin = bench.clock.mark()
            step()
            marks.append((begin, bench.clock.mark()))
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = [bench.clock.seconds_between(*pair) for pair in marks[1:]]
    peak = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    return {"seconds": statistics.median(seconds), "peak_bytes": peak, "repeats": len(seconds)}


def _capture_step(device: torch.device, step: Callable[[int], object]) -> Callable[[], object]:
    if device.type != "cuda":
        return functools.partial(step, 0)
    with torch.inference_mode():
        return capture_calls(step, 1).replay


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
    layers, heads, _ = bench.shape
    for tokens, batch in bench.options.decode_cells:
        if bench.is_late("decode", tokens=tokens, batch=batch):
            continue
        runs: dict[tuple[str, float], Callable[[], object]] = {}
        for name in bench.dense:
            runs[name, 0.0] = functools.partial(_time_dense, bench, handle, name, batch, tokens)
        for ratio in bench.options.ratios:
            routes = draw_routes(ratio, layers, heads)
            runs["elastic", float(routes.float().mean())] = functools.partial(
                _time_elastic, bench, handle, routes, batch, tokens
            )
        rows: Rows = []
        for (name, msr), run in runs.items():
            _free(bench.device)
            try:
                row = run()
            except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
                bench.note_missing("decode", name, error, tokens=tokens, batch=batch, msr=msr)
                continue
            rows.append({"tokens": tokens, "batch": batch, "kernel": name, "msr": msr} | row)
        best = min((row["seconds"] for row in rows if row["kernel"] != "elastic"), default=math.nan)
        for row in rows:
            bound = (weights + row["kv_bytes"]) / rate
            row |= {"tokens_per_second": batch / row["seconds"], "speedup": best / row["seconds"]}
            row |= {"bound_seconds": bound, "bound_share": bound / row["seconds"]}
            row["kv_bytes_dense"] = batch * tokens * bench.dense_bytes_per_token
        bench.add("decode", *rows)
        bench.save()
    _free(bench.device)


def _time_dense(bench: ModelBench, handle: Any, name: str, batch: int, tokens: int) -> dict[str, Any]:
    _restart_peak(bench.device)
    with handle.disabled():
        bench.model.set_attn_implementation(name_dense(name))
        step = _capture_step(bench.device, make_dense_step(bench, name, batch, tokens))
        return time_step(bench, step) | {"kv_bytes": batch * tokens * bench.dense_bytes_per_token}


def _time_elastic(bench: ModelBench, handle: Any, routes: Tensor, batch: int, tokens: int) -> dict[str, Any]:
    if bench.device.type != "cuda":
        raise BackendUnavailable("A captured step needs a GPU.")
    _restart_peak(bench.device)
    row = time_step(bench, make_elastic_step(bench, handle, routes, batch, tokens))
    return row | {"kv_bytes": batch * count_kv_bytes(bench, handle, routes, tokens)}


def count_kv_bytes(bench: ModelBench, handle: Any, routes: Tensor, tokens: int) -> int:
    """Bytes that one sequence of `tokens` holds in its cache, and that its next step reads."""
    held = build_pattern(handle.config.sparse_pattern).count_held(tokens)
    sparse = int(routes.sum())
    per_row = bench.dense_bytes_per_token // routes.numel()
    return per_row * (sparse * held + (routes.numel() - sparse) * tokens)


def _restart_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


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
    """The most sequences of one length whose caches fit beside the weights and decode a step, dense and elastic."""
    if bench.device.type != "cuda":
        bench.note_missing("batch", "largest batch", "needs a GPU")
        return
    tokens, name = bench.options.batch_tokens, bench.dense[-1]
    layers, heads, _ = bench.shape
    routes = draw_routes(bench.options.batch_ratio, layers, heads)

    def run_dense(batch: int) -> None:
        with torch.inference_mode(), handle.disabled():
            bench.model.set_attn_implementation(name_dense(name))
            make_dense_step(bench, name, batch, tokens)(0)

    def run_elastic(batch: int) -> None:
        make_elastic_step(bench, handle, routes, batch, tokens)()

    def fits(run: Callable[[int], None], batch: int) -> bool:
        _free(bench.device)
        try:
            run(batch)
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            return False
        return True

    for kernel, run, num_bytes in (
        (name, run_dense, tokens * bench.dense_bytes_per_token),
        ("elastic", run_elastic, count_kv_bytes(bench, handle, routes, tokens)),
    ):
        if bench.is_late("batches", tokens=tokens, kernel=kernel):
            continue
        _free(bench.device)
        free, _ = torch.cuda.mem_get_info()
        msr = float(routes.float().mean()) if kernel == "elastic" else 0.0
        largest = find_largest_batch(functools.partial(fits, run), int(0.95 * free / num_bytes))
        bench.add("batches", {"tokens": tokens, "kernel": kernel, "msr": msr, "largest_batch": largest})
    _free(bench.device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
