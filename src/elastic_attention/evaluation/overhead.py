"""What attaching costs: prefill with all heads full against the base model, the router's share, and the KV bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from .. import records
from ..config import StreamingConfig
from ..models.cache_layer import ElasticLayer
from ..models.families import find_attention_modules
from .session import Session, describe_device, measure_peak_bytes

SEED = 0
ROW_KEYS = ("tokens", "dense_milliseconds", "full_milliseconds", "elastic_milliseconds", "router_milliseconds")


def draw_prompt(session: Session, num_tokens: int) -> torch.Tensor:
    """(1, num_tokens) random token ids; times and bytes do not depend on what they say."""
    vocabulary = session.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (1, num_tokens), generator=generator).to(session.device)


def measure_overhead(session: Session, *, tokens: int, repeats: int) -> dict[str, Any]:
    """Time prefill with a cache: base model, attached with all heads full, attached with the router deciding.

    Every repeat runs the three in turn; the values are medians in milliseconds. `router_milliseconds` is all that
    routing adds: pooling, recomputed keys, router and planning, over all layers. The overhead is the median over the
    repeats of full / dense, which cancels what slows both.

    Returns:
        A row: the keys of ROW_KEYS, overhead_ratio and router_ratio.
    """
    ids, handle = draw_prompt(session, tokens), session.handle
    times: dict[str, list[float]] = {key: [] for key in ROW_KEYS[1:]}
    for repeat in range(repeats + 1):
        with handle.disabled():
            dense = _time_prefill(session, ids)
        handle.set_routes("full")
        full = _time_prefill(session, ids)
        handle.set_routes(None)
        elastic, router = _time_routing(session, ids)
        if repeat:  # the first round warms up
            for kept, value in zip(times.values(), (dense, full, elastic, router), strict=True):
                kept.append(value)
    ratios = [full / dense for full, dense in zip(times["full_milliseconds"], times["dense_milliseconds"], strict=True)]
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "tokens": tokens,
        **medians,
        "overhead_ratio": statistics.median(ratios) - 1,
        "router_ratio": medians["router_milliseconds"] / medians["dense_milliseconds"],
    }


def measure_kv_bytes(session: Session, *, tokens: int) -> dict[str, Any]:
    """Compare the bytes that the cache holds after a prefill with the formula.

    The formula is the sum over layers and KV heads of 2 * D * itemsize * (n if full, else the sink and the local
    blocks), written out here from the block rule alone.

    Returns:
        tokens, kv_bytes (counted in the cache), kv_bytes_formula, kv_bytes_dense and msr.
    """
    handle = session.handle
    with torch.inference_mode():
        cache = session.model(input_ids=draw_prompt(session, tokens), use_cache=True, logits_to_keep=1).past_key_values
    report, pattern = handle.report(), handle.config.sparse_pattern
    assert isinstance(pattern, StreamingConfig)
    element_bytes = 2 * handle.config.base_model.head_dim * session.dtype.itemsize
    first_local_block = -(-tokens // pattern.block_size) - pattern.local_window // pattern.block_size
    held_by_sparse = min(tokens, pattern.num_sink_tokens + tokens - max(0, first_local_block) * pattern.block_size)
    num_sparse = int(report["routes"][0][list(handle.routed_layers)].sum())
    num_heads = len(handle.routed_layers) * handle.config.base_model.num_kv_heads
    stores = [layer.store for layer in cache.layers if isinstance(layer, ElasticLayer)]
    counted = sum(store.count_stored() for store in stores)
    return {
        "tokens": tokens,
        "kv_bytes": counted * element_bytes,
        "kv_bytes_formula": (num_sparse * held_by_sparse + (num_heads - num_sparse) * tokens) * element_bytes,
        "kv_bytes_dense": num_heads * tokens * element_bytes,
        "msr": report["msr"][0],
    }


def build_overhead_record(
    session: Session,
    row: dict[str, Any],
    kv_bytes: dict[str, Any],
    memory: Sequence[dict[str, Any]],
    repeats: int,
    started: float,
) -> records.Record:
    """The record of `elastic-attn bench --what overhead`."""
    return records.build_record(
        "bench overhead",
        config={"repeats": repeats, "backend": session.handle.backend, "decode": session.handle.decode},
        model=session.describe(),
        data="random tokens",
        device=describe_device(session.device),
        seed=SEED,
        n=repeats,
        metrics={"rows": [row], "kv_bytes": kv_bytes, "memory": list(memory)},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(session.device),
    )


def _time_prefill(session: Session, ids: torch.Tensor) -> float:
    """Milliseconds of one prefill that fills a cache, up to the logits of the last token."""
    with torch.inference_mode():
        _synchronize(session.device)
        started = time.perf_counter()
        session.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        _synchronize(session.device)
    return (time.perf_counter() - started) * 1e3


def _time_routing(session: Session, ids: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of a routed prefill, and of what its hooks on the attention modules take."""
    begun: list[float] = []
    spent: list[float] = []

    def begin(module: torch.nn.Module, args: Any) -> None:
        _synchronize(session.device)
        begun.append(time.perf_counter())

    def finish(module: torch.nn.Module, args: Any) -> None:
        _synchronize(session.device)
        spent.append(time.perf_counter() - begun[-1])

    hooks = []
    for module in find_attention_modules(session.model).values():
        hooks += [module.register_forward_pre_hook(begin, prepend=True), module.register_forward_pre_hook(finish)]
    try:
        total = _time_prefill(session, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return total, sum(spent) * 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
