"""Decode attention over ragged caches: our kernel over pages beside FlashAttention-3's flat call."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
from gpu_parts import PATTERN
from sections import KernelBench
from torch import Tensor

from elastic_attention.evaluation.bench_decode import CACHE_BYTES, check_decode
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.evaluation.timing import Run, time_graphs
from elastic_attention.kernels.modes import FULL, STREAMING
from elastic_attention.paging.verbs import PageVerbs, verbs_for

SPLITS = (1, 8, 16, 32, 64)
PAGE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCell:
    """One decode step's attention: every row is a (sequence, KV head) and holds `lengths` tokens."""

    shape: AttentionShape
    routes: Tensor
    bench: KernelBench

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        held = min(self.shape.tokens, PATTERN.num_sink_tokens + PATTERN.local_window)
        return [held if is_sparse else self.shape.tokens for is_sparse in self.routes.flatten().tolist()]

    @property
    def num_bytes(self) -> int:
        """Keys and values that the routes need."""
        return 2 * self.shape.head_dim * self.bench.dtype.itemsize * sum(self.lengths)

    @property
    def num_sets(self) -> int:
        """Caches that take turns: as in a model, where a layer's cache was not read just before."""
        return math.ceil(CACHE_BYTES / self.num_bytes)

    def draw(self, *shape: int) -> Tensor:
        """Random values on the device."""
        return torch.randn(*shape, device=self.bench.device, dtype=self.bench.dtype)


def measure_decode(bench: KernelBench) -> None:
    """One new token a sequence over ragged caches: ours over pages, beside FlashAttention-3's flat call."""
    module, verbs = peers.load_fa3(bench.device), verbs_for(bench.device)
    if module is None:
        bench.note_missing("decode", "fa3 flat", "FlashAttention-3 is not installed, or there is no GPU")
    check_decode(PATTERN, device=bench.device, dtype=bench.dtype)
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    for tokens in bench.options.decode_lengths:
        for batch in bench.options.decode_batches:
            shape = AttentionShape(
                tokens=tokens, batch=batch, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim
            )
            for routes in map(shape.spread_sparse, bench.options.decode_ratios):
                if bench.is_due("decode", **shape.as_row(), msr=float(routes.float().mean())):
                    cell = DecodeCell(shape=shape, routes=routes, bench=bench)
                    _measure_decode_cell(bench, cell, module, verbs)
        bench.save()


def _measure_decode_cell(bench: KernelBench, cell: DecodeCell, module: Any, verbs: PageVerbs) -> None:
    calls, times, splits = max(4, cell.num_sets), {}, None
    runs: dict[str, Run] = {}
    options = {"device": bench.device, "calls": calls}
    try:
        if module is not None:
            flat = _plan_flat(cell, module)
            trial = time_graphs(flat, repeats=2, **options)
            splits = min(trial, key=lambda name: trial[name].median)
            runs["fa3 flat"] = flat[splits]
        runs["paged"] = plan_paged(cell, verbs)
        times = time_graphs(runs, repeats=bench.options.repeats, **options)
    except torch.OutOfMemoryError as error:
        bench.note_missing("decode", "caches", error, **cell.shape.as_row())
    for name, timing in times.items():
        row = {"kernel": name, "msr": float(cell.routes.float().mean()), "bytes": cell.num_bytes}
        row |= {"terabytes_per_second": cell.num_bytes / timing.median / 1e9}
        row |= {"splits": int(splits)} if name == "fa3 flat" and splits else {}
        row |= {"speedup": times["fa3 flat"].median / timing.median} if "fa3 flat" in times else {}
        bench.add("decode", cell.shape.as_row() | row | timing.as_row())


def _plan_flat(cell: DecodeCell, module: Any) -> dict[str, Run]:
    shape, lengths = cell.shape, cell.lengths
    caches = [[cell.draw(sum(lengths), 1, shape.head_dim) for _ in "kv"] for _ in range(cell.num_sets)]
    q = cell.draw(len(lengths), shape.num_q_heads // shape.num_kv_heads, shape.head_dim)
    plans = {splits: peers.plan_flat_decode(module, lengths, splits, cell.bench.device) for splits in SPLITS}
    return {str(splits): functools.partial(_run_flat, plan, q, caches) for splits, plan in plans.items()}


def _run_flat(plan: peers.FlatDecode, q: Tensor, caches: Sequence[Sequence[Tensor]], i: int) -> Tensor:
    return plan(q, *caches[i % len(caches)])


def plan_paged(cell: DecodeCell, verbs: PageVerbs) -> Run:
    """Our kernel over pages that lie in the pool in random order."""
    shape, device = cell.shape, cell.bench.device
    counts = [-(-length // PAGE) for length in cell.lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, pages in enumerate(order.split(counts)):
        table[row, : len(pages)] = pages
    table = table.to(device)
    pools = [[cell.draw(len(order), PAGE, shape.head_dim) for _ in "kv"] for _ in range(cell.num_sets)]
    lengths = torch.full((shape.batch,), shape.tokens, dtype=torch.int32, device=device)
    modes = torch.where(cell.routes, STREAMING, FULL).int().to(device)
    q = cell.draw(shape.batch, shape.num_q_heads, 1, shape.head_dim)
    workspace = verbs.make_workspace(q, shape.num_kv_heads, PAGE)

    def run(i: int) -> Tensor:
        pages = pools[i % len(pools)]
        scale = shape.head_dim**-0.5
        return verbs.decode_paged(q, *pages, table, lengths, modes, PATTERN, scale, workspace=workspace)

    return run
