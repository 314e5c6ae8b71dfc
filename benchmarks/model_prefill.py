"""Prefill of a whole model: dense kernels, every ratio of FA-SSA, and the other pairs of patterns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from model_bench import SEED, ModelBench, draw_routes, name_dense
from torch import Tensor

from elastic_attention import ElasticConfig, hybrid_attention
from elastic_attention.config import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.patterns import TrianglePattern, build_pattern, count_listed_pairs
from elastic_attention.sparsity import count_causal_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRun:
    """One way to prefill.

    Attributes:
        kernel: a dense kernel, or "elastic": the routers run, and then given routes are taken.
        pair: one of `model_bench.PAIRS`; None = dense.
        ratio: share of sparse heads.
        density: share of the blocks that XAttention keeps; None where it has no part.
    """

    kernel: str
    pair: str | None = None
    ratio: float = 0.0
    density: float | None = None

    def draw_routes(self, bench: ModelBench) -> Tensor:
        """(L, G) bool."""
        return draw_routes(self.ratio, *bench.shape[:2])

    def cell(self, bench: ModelBench, tokens: int) -> dict[str, Any]:
        """What the rows of the record are found by."""
        msr = float(self.draw_routes(bench).float().mean())
        row = {"tokens": tokens, "batch": 1, "kernel": self.kernel, "pair": self.pair}
        return row | {"density": self.density, "msr": msr}


def list_runs(bench: ModelBench) -> Iterator[PrefillRun]:
    """Every way that the options ask for."""
    options = bench.options
    for name in bench.dense:
        yield PrefillRun(kernel=name)
    if "fa-ssa" in options.pairs:
        for ratio in options.ratios:
            yield PrefillRun(kernel="elastic", pair="fa-ssa", ratio=ratio)
    for pair in options.pairs:
        densities = options.densities if "xa" in pair else [None] if pair == "fa-ta" else []
        for ratio in options.pair_ratios:
            for density in densities:
                yield PrefillRun(kernel="elastic", pair=pair, ratio=ratio, density=density)


def measure_prefill(bench: ModelBench) -> None:
    """Prefill into a new cache up to the logits of the last token; a run's repeats follow each other."""
    warm: set[PrefillRun] = set()
    for tokens in bench.options.lengths:
        bench.free()
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(bench.model.config.vocab_size, (1, tokens), generator=generator).to(bench.device)
        for run in list_runs(bench):
            cell = run.cell(bench, tokens)
            if not bench.is_due("prefill", **cell):
                continue
            try:
                row = _measure_run(bench, run, ids, is_warm=run in warm)
            except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
                bench.note_missing("prefill", run.kernel, error, **{k: v for k, v in cell.items() if k != "kernel"})
                continue
            warm.add(run)
            bench.add("rows", cell | row)
            bench.save()
    bench.free()


def _measure_run(bench: ModelBench, run: PrefillRun, ids: Tensor, *, is_warm: bool) -> dict[str, Any]:
    tokens, short = ids.shape[1], ids[:, : bench.options.warm_tokens]
    dense_bytes = tokens * bench.dense_bytes_per_token
    if run.pair is None:
        bench.model.set_attn_implementation(name_dense(run.kernel))
        if not is_warm:
            _time_forward(bench, short)
        rows = [_time_forward(bench, ids) for _ in range(bench.options.repeats)]
        facts: dict[str, Any] = {"visited_fraction": 1.0, "kv_bytes": dense_bytes}
    else:
        with bench.attached(run.pair, run.density) as handle:
            routes = run.draw_routes(bench)
            give_routes(handle, routes)
            if bench.device.type == "cuda":
                _warm_attention(bench, handle, tokens)
            if not is_warm:
                _time_forward(bench, short)
            rows = [_time_forward(bench, ids) for _ in range(bench.options.repeats)]
            facts = {"visited_fraction": visited_fraction(routes, handle.config, tokens), "backend": handle.backend}
            facts["kv_bytes"] = sum(handle.report()["kv_bytes"])
    seconds = statistics.median(row["seconds"] for row in rows)
    row = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    facts |= {"kv_bytes_dense": dense_bytes, "kv_ratio": facts["kv_bytes"] / dense_bytes}
    return row | {"tokens_per_second": tokens / seconds, "repeats": len(rows)} | facts


def _time_forward(bench: ModelBench, ids: Tensor) -> dict[str, float]:
    """Seconds, attention seconds and peak memory of one prefill."""
    bench.restart_peak()
    bench.clock.take()
    with torch.inference_mode():
        begin = bench.clock.mark()
        bench.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        end = bench.clock.mark()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    row = {"seconds": bench.clock.seconds_between(begin, end), "attention_seconds": bench.clock.take()}
    return row | {"peak_bytes": bench.measure_peak()}


def give_routes(handle: Any, routes: Tensor) -> None:
    """Let the routers run as they do, and then take these routes (L, G), which lie on the device as theirs do."""
    given, fused, module = routes.to(handle.model.device), handle._fused.route, handle.decide

    def route(index: int, keys: Tensor, counts: Tensor, *, budget: float) -> Tensor:
        fused(index, keys, counts, budget=budget)
        return given[index].expand(len(keys), -1)

    def decide(index: int, pooled: Tensor) -> Tensor:
        module(index, pooled)
        return given[index].expand(len(pooled), -1)

    handle._fused.route, handle.decide = route, decide


def _warm_attention(bench: ModelBench, handle: Any, tokens: int) -> None:
    """Compile what depends on the length: one attention of the whole length, heads of both kinds."""
    config = bench.model.config
    shape = AttentionShape(
        tokens=tokens,
        num_q_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )
    q, k, v = shape.draw(bench.device, bench.model.dtype)
    routes, patterns = shape.spread_sparse(0.5).to(bench.device), handle.config
    hybrid_attention(
        q, k, v, routes,
        pattern=patterns.sparse_pattern, full_pattern=patterns.full_pattern, backend=handle.backend,
    )  # fmt: skip


def visited_fraction(routes: Tensor, config: ElasticConfig, tokens: int) -> float:
    """Query-key pairs that a prefill reads over causal pairs; scoring is not among them."""
    sparse = _count_pairs(config.sparse_pattern, tokens)
    full = _count_pairs(config.full_pattern, tokens)
    num_sparse, total = int(routes.sum()), routes.numel()
    return (num_sparse * sparse + (total - num_sparse) * full) / (total * count_causal_pairs(0, tokens))


def _count_pairs(config: Any, tokens: int) -> int:
    """Pairs that one head reads."""
    if isinstance(config, StreamingConfig):
        return build_pattern(config).count_pairs(0, tokens)
    if isinstance(config, TriangleConfig):
        return TrianglePattern(config).count_pairs(0, tokens, tokens)
    if isinstance(config, XAttentionConfig):
        assert config.density is not None
        blocks = range(1, -(-tokens // config.block_size) + 1)
        # The first block and the diagonal are always kept.
        counts = torch.tensor([[max(min(2, n), math.ceil(config.density * n - 1e-6)) for n in blocks]])
        return int(count_listed_pairs(counts, config.block_size, 0, 0, tokens))
    return count_causal_pairs(0, tokens)
