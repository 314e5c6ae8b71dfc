"""Decode of a whole model over caches of random values, and the largest batch that fits."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from model_bench import Clock, ModelBench, draw_routes, name_dense
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from elastic_attention.errors import BackendUnavailable, ElasticAttentionError
from elastic_attention.evaluation.timing import capture_calls
from elastic_attention.models.cache_layer import claim_layer
from elastic_attention.models.captured import CapturedDecoder
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes


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


def make_dense_step(bench: ModelBench, batch: int, tokens: int) -> Callable[[int], object]:
    """One greedy decode step of the base model over a cache of `tokens`, with the attention that it is set to."""
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
    """One greedy decode step of the attached model as its own captured graph; the last one reads `tokens`."""
    num_new = bench.options.steps + 2
    cache = fill_cache(handle, routes, batch=batch, tokens=tokens - num_new)  # the new ones fit its last pages
    first = torch.zeros(batch, dtype=torch.long, device=bench.device)
    decoder = CapturedDecoder(handle, cache, first, max_new_tokens=num_new)
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
    return {"seconds": statistics.median(seconds), "peak_bytes": bench.measure_peak(), "repeats": len(seconds)}


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
    """Bytes per second of the quickest of five device-to-device copies, bytes read plus bytes written."""
    source, clock = torch.randn(count // 4, device=device), Clock(device=device)
    target = torch.empty_like(source)
    for _ in range(6):
        begin = clock.mark()
        target.copy_(source)
        clock.marks.append((begin, clock.mark()))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * source.nbytes / min(clock.seconds_between(*pair) for pair in clock.marks[1:])


def measure_decode(bench: ModelBench) -> None:
    """Decode steps over caches of random values, dense beside elastic, as captured graphs."""
    if not bench.options.decode_cells:
        return
    rate, weights = measure_copy_rate(bench.device, bench.options.copy_bytes), count_step_bytes(bench.model)
    bench.add("ceilings", {"name": "copy", "terabytes_per_second": rate / 1e12})
    for tokens, batch in bench.options.decode_cells:
        for kernel, ratio in [(name, None) for name in bench.dense] + [("elastic", r) for r in bench.options.ratios]:
            routes = draw_routes(ratio or 0.0, *bench.shape[:2])
            cell = {"tokens": tokens, "batch": batch, "kernel": kernel, "pair": None if ratio is None else "fa-ssa"}
            cell["msr"] = float(routes.float().mean())
            if not bench.is_due("decode", **cell):
                continue
            bench.free()
            try:
                if ratio is None:
                    row = _time_dense(bench, kernel, batch, tokens)
                else:
                    row = _time_elastic(bench, routes, batch, tokens)
            except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
                bench.note_missing("decode", kernel, error, **{k: v for k, v in cell.items() if k != "kernel"})
                continue
            row |= {"tokens_per_second": batch / row["seconds"], "needed_bytes": weights + row["kv_bytes"]}
            row["kv_bytes_dense"] = batch * tokens * bench.dense_bytes_per_token
            bench.add("decode", cell | row)
            bench.save()
    bench.free()


def _time_dense(bench: ModelBench, name: str, batch: int, tokens: int) -> dict[str, Any]:
    bench.model.set_attn_implementation(name_dense(name))
    step = _capture_step(bench.device, make_dense_step(bench, batch, tokens))
    return time_step(bench, step) | {"kv_bytes": batch * tokens * bench.dense_bytes_per_token}


def _time_elastic(bench: ModelBench, routes: Tensor, batch: int, tokens: int) -> dict[str, Any]:
    if bench.device.type != "cuda":
        raise BackendUnavailable("A captured step needs a GPU.")
    with bench.attached() as handle:
        row = time_step(bench, make_elastic_step(bench, handle, routes, batch, tokens))
        return row | {"kv_bytes": batch * count_kv_bytes(bench, handle, routes, tokens), "backend": handle.backend}


def count_kv_bytes(bench: ModelBench, handle: Any, routes: Tensor, tokens: int) -> int:
    """Bytes that one sequence of `tokens` holds in its cache, and that its next step reads."""
    held = build_pattern(handle.config.sparse_pattern).count_held(tokens)
    sparse = int(routes.sum())
    per_row = bench.dense_bytes_per_token // routes.numel()
    return per_row * (sparse * held + (routes.numel() - sparse) * tokens)


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


def measure_largest_batch(bench: ModelBench) -> None:
    """The most sequences of one length whose caches fit, and a decode step of them, dense and elastic."""
    if bench.device.type != "cuda":
        bench.note_missing("batches", "largest batch", "needs a GPU")
        return
    tokens = bench.options.batch_tokens
    routes = draw_routes(bench.options.batch_ratio, *bench.shape[:2])
    dense_bytes = tokens * bench.dense_bytes_per_token
    with bench.attached() as handle:
        share = count_kv_bytes(bench, handle, routes, tokens) / dense_bytes
    runs: dict[str, tuple[float, Callable[[int], dict[str, Any]], float]] = {
        name: (0.0, lambda batch, name=name: _time_dense(bench, name, batch, tokens), 1.0)  # type: ignore[misc]
        for name in bench.dense[-1:]
    }
    runs["elastic"] = float(routes.float().mean()), lambda batch: _time_elastic(bench, routes, batch, tokens), share
    for kernel, (msr, run, kept) in runs.items():
        cell = {"tokens": tokens, "kernel": kernel, "pair": "fa-ssa" if kernel == "elastic" else None, "msr": msr}
        if not bench.is_due("batches", **cell):
            continue
        found: dict[int, dict[str, Any]] = {0: {}}

        def fits(batch: int, run: Callable[[int], dict[str, Any]] = run, found: Any = found) -> bool:
            bench.free()
            try:
                found[batch] = run(batch)
            except torch.OutOfMemoryError:
                return False
            return True

        bench.free()
        free, _ = torch.cuda.mem_get_info()
        largest = find_largest_batch(fits, int(0.95 * free / (kept * dense_bytes)))
        row = found[largest]
        row |= {"tokens_per_second": largest / row["seconds"]} if row else {}
        bench.add("batches", cell | {"largest_batch": largest} | row)
        bench.save()
    bench.free()
