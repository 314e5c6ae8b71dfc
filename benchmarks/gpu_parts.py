"""The kernels besides prefill: router, decode over ragged caches, both paths of training, XAttention's choice."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
from sections import KernelBench
from torch import Tensor

from elastic_attention import RouterConfig, StreamingConfig, blended_attention
from elastic_attention.config import XAttentionConfig
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.bench_gpu import Attend
from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.evaluation.timing import Run, time_graphs, time_interleaved
from elastic_attention.kernels.modes import FULL, LISTS, STREAMING
from elastic_attention.router import AttentionRouter

PATTERN = StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128)
CACHE_BYTES = 256 * 2**20  # several times the L2 cache
SPLITS = (1, 8, 16, 32, 64)
PAGE = 128


def measure_router(bench: KernelBench) -> None:
    """The fused router beside the module, both as graphs over layers whose weights are not in the cache."""
    try:
        from elastic_attention.kernels.triton.router import RouterWeights, route_fused
    except ImportError as error:
        bench.note_missing("router", "fused", error)
        return
    # Weights and keys of a size at which the logits are of order one.
    config = RouterConfig.for_head_dim(bench.options.heads[0][2], init_std=0.1)
    num_layers = bench.options.router_layers
    routers = [AttentionRouter(config).to(bench.device) for _ in range(num_layers)]
    weights = [RouterWeights.from_state(router.state_dict()) for router in routers]
    num_kv_heads, pooled = bench.options.heads[0][1], 2 * config.pooled_tokens
    for batch in bench.options.router_batches:
        if bench.is_late("router", batch=batch):
            continue
        shape = (batch, pooled, num_kv_heads, config.head_dim)
        keys = [10 * torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(num_layers)]
        counts = torch.ones(batch, pooled, device=bench.device)
        fused = [
            functools.partial(route_fused, *args) for args in zip(keys, [counts] * num_layers, weights, strict=True)
        ]
        plain = [functools.partial(_route_plainly, router, key) for router, key in zip(routers, keys, strict=True)]
        with torch.inference_mode():
            difference = max(float((f()[1] - p()).abs().max()) for f, p in zip(fused, plain, strict=True))
            times = time_graphs(
                {
                    "fused": lambda i, calls=fused: calls[i](),
                    "module": lambda i, calls=plain: calls[i](),
                },
                device=bench.device,
                repeats=bench.options.repeats,
                calls=num_layers,
            )
        for name, timing in times.items():
            row = {"kernel": name, "batch": batch, "kv_heads": num_kv_heads, "head_dim": config.head_dim}
            bench.add("router", row | {"pooled_tokens": pooled, "largest_difference": difference} | timing.as_row())


def _route_plainly(router: AttentionRouter, keys: Tensor) -> Tensor:
    return router.logits(keys.float().mean(1))


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
    module, decode = peers.load_fa3(), _load_decode(bench)
    if module is None:
        bench.note_missing("decode", "fa3 flat", "FlashAttention-3 is not installed")
    if decode is not None:
        check_decode(bench.device, decode)
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    for tokens in bench.options.decode_lengths:
        for batch in bench.options.decode_batches:
            for ratio in bench.options.decode_ratios:
                shape = AttentionShape(
                    tokens=tokens, batch=batch, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim
                )
                if not bench.is_late("decode", **shape.as_row(), msr=ratio):
                    cell = DecodeCell(shape=shape, routes=shape.spread_sparse(ratio), bench=bench)
                    _measure_decode_cell(bench, cell, module, decode)


def _measure_decode_cell(bench: KernelBench, cell: DecodeCell, module: Any, decode: Any) -> None:
    calls, times, splits = max(4, cell.num_sets), {}, None
    runs: dict[str, Run] = {}
    options = {"device": bench.device, "calls": calls}
    try:
        if module is not None:
            flat = _plan_flat(cell, module)
            trial = time_graphs(flat, repeats=2, **options)
            splits = min(trial, key=lambda name: trial[name].median)
            runs["fa3 flat"] = flat[splits]
        if decode is not None:
            runs["paged"] = _plan_paged(cell, decode)
        if runs:
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


def _plan_paged(cell: DecodeCell, decode: Any) -> Run:
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
    workspace = decode.DecodeWorkspace.for_queries(q, shape.num_kv_heads)

    def run(i: int) -> Tensor:
        pages = pools[i % len(pools)]
        scale = shape.head_dim**-0.5
        out: Tensor = decode.decode_paged(q, *pages, table, lengths, modes, PATTERN, scale, workspace=workspace)
        return out

    return run


def _load_decode(bench: KernelBench) -> Any | None:
    try:
        from elastic_attention.kernels.triton import decode
    except ImportError as error:
        bench.note_missing("decode", "paged", error)
        return None
    if bench.device.type != "cuda":
        bench.note_missing("decode", "paged", "needs a GPU")
        return None
    return decode


def check_decode(device: torch.device, decode: Any, *, dtype: torch.dtype = torch.bfloat16) -> float:
    """Compare the decode kernel with the same verb in float64 PyTorch, on rows that ring and rows that do not.

    Raises:
        OracleMismatch: it differs by more than rounding explains.
    """
    from elastic_attention.paging import plain

    config = StreamingConfig(num_sink_tokens=16, local_window=48, block_size=16)
    lengths = torch.tensor([333, 64, 1], dtype=torch.int32, device=device)
    modes = torch.tensor([[FULL, STREAMING]] * 3, dtype=torch.int32, device=device)
    table = torch.arange(6 * 21, dtype=torch.int32, device=device).flip(0).view(6, 21)
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, device=device, dtype=dtype, generator=generator)
    q, keys, values = draw(3, 8, 1, 64), draw(126, 16, 64), draw(126, 16, 64)
    exact = plain.decode_paged(q.double(), keys.double(), values.double(), table, lengths, modes, config, 0.125)
    out = decode.decode_paged(q, keys, values, table, lengths, modes, config, 0.125)
    error = float((out.double() - exact).norm() / exact.norm())
    bound = 2 * torch.finfo(dtype).eps
    if not error <= bound:
        raise OracleMismatch(f"The decode kernel differs from the oracle by {error:.2e}, more than {bound:.2e}.")
    return error


def measure_blended(bench: KernelBench) -> None:
    """Training: both paths of every head, forward and forward with backward, beside dense attention."""
    dense, _ = peers.find_dense(bench.device)
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    for tokens in bench.options.blended_lengths:
        shape = AttentionShape(tokens=tokens, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        if bench.is_late("blended", **shape.as_row()):
            continue
        inputs = [x.detach().requires_grad_() for x in shape.draw(bench.device, bench.dtype)]
        route = torch.full((1, kv_heads), 0.5, device=bench.device, requires_grad=True)
        attends: dict[str, Attend] = {kernel.name: kernel.prepare(route) for kernel in dense}
        attends |= {
            name: functools.partial(blended_attention, route=route, pattern=PATTERN, backend=name)
            for name in bench.backends
        }
        runs: dict[str, Run] = {}
        for name, attend in attends.items():
            wanted = [*inputs, route] if name in bench.backends else inputs
            runs[f"{name} forward"] = functools.partial(_run_forward, attend, inputs)
            if name != "fa3":  # its package leaves the backward out
                runs[f"{name} both"] = functools.partial(_run_both, attend, inputs, wanted)
        runs = _keep_working(bench, "blended", runs)
        times = time_interleaved(
            runs, device=bench.device, repeats=bench.options.repeats, max_seconds=bench.options.cell_seconds
        )
        for phase in ("forward", "both"):
            of_phase = {name.rpartition(" ")[0]: t for name, t in times.items() if name.endswith(phase)}
            best = min((of_phase[k.name].median for k in dense if k.name in of_phase), default=None)
            for name, timing in of_phase.items():
                row = {"kernel": name, "phase": phase, "dense_ratio": timing.median / best if best else None}
                bench.add("blended", shape.as_row() | row | timing.as_row())


def _run_forward(attend: Attend, inputs: Sequence[Tensor], _: int) -> Tensor:
    return attend(*inputs)


def _run_both(attend: Attend, inputs: Sequence[Tensor], wanted: Sequence[Tensor], _: int) -> None:
    out = attend(*inputs)
    torch.autograd.grad(out, wanted, torch.ones_like(out))


def measure_xattention(bench: KernelBench) -> None:
    """XAttention with all heads scored: the choice alone, and attention over lists of a forced density."""
    try:
        from elastic_attention.kernels.triton.xattention import build_block_lists
    except ImportError as error:
        bench.note_missing("xattention", "scoring", error)
        return
    if bench.device.type != "cuda":
        bench.note_missing("xattention", "scoring", "needs a GPU")
        return
    attends, dense = _load_list_kernels(bench), peers.find_dense(bench.device)[0]
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    scale = head_dim**-0.5
    for tokens in bench.options.xattention_lengths:
        shape = AttentionShape(tokens=tokens, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        if bench.is_late("xattention", **shape.as_row()):
            continue
        q, k, v = shape.draw(bench.device, bench.dtype)
        modes = torch.full((1, kv_heads), LISTS, dtype=torch.int32, device=bench.device)
        runs: dict[str, Run] = {
            f"{kernel.name} dense": functools.partial(_run_forward, kernel.prepare(modes), (q, k, v))
            for kernel in dense
        }
        runs["scoring threshold"] = lambda _, q=q, k=k, m=modes: build_block_lists(q, k, m, XAttentionConfig(), scale)
        flops: dict[str, float] = {}
        for density in bench.options.densities:
            config = XAttentionConfig(density=density)
            lists = build_block_lists(q, k, modes, config, scale)
            pairs = (lists.counts.sum().item() - 0.5 * lists.counts.numel()) * config.block_size**2
            runs[f"scoring {density}"] = functools.partial(_run_choice, build_block_lists, q, k, modes, config, scale)
            for name, attend in attends.items():
                label = f"{name} {density}"
                runs[label] = functools.partial(_run_lists, attend, (q, k, v), modes, lists, scale)
                flops[label] = 4.0 * head_dim * pairs
        runs = _keep_working(bench, "xattention", runs)
        times = time_interleaved(
            runs, device=bench.device, repeats=bench.options.repeats, max_seconds=bench.options.cell_seconds
        )
        best = min(timing.median for name, timing in times.items() if name.endswith("dense"))
        for label, timing in times.items():
            name, _, what = label.rpartition(" ")
            row = {"kernel": name, "density": float(what) if what[0].isdecimal() else None}
            row |= {"dense_ratio": timing.median / best, "dense_milliseconds": best}
            row |= {"teraflops": flops[label] / timing.median / 1e9} if label in flops else {}
            bench.add("xattention", shape.as_row() | row | timing.as_row())


def _run_choice(
    build: Callable[..., Any], q: Tensor, k: Tensor, modes: Tensor, config: Any, scale: float, _: int
) -> Any:
    return build(q, k, modes, config, scale)


def _run_lists(
    attend: Callable[..., Any], inputs: Sequence[Tensor], modes: Tensor, lists: Any, scale: float, _: int
) -> Any:
    return attend(*inputs, modes, PATTERN, scale, lists=lists)


def _load_list_kernels(bench: KernelBench) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    if "triton" in bench.backends:
        from elastic_attention.kernels.triton.prefill import attend_triton

        found["triton"] = attend_triton
    if "hopper" in bench.backends:
        from elastic_attention.kernels.hopper import attend_hopper

        found["hopper"] = attend_hopper
    return found


def _keep_working(bench: KernelBench, section: str, runs: dict[str, Run]) -> dict[str, Run]:
    """Call every run once; those that fail are listed as missing and left out."""
    working = {}
    for name, run in runs.items():
        try:
            run(0)
        except (RuntimeError, ValueError, TypeError, ElasticAttentionError) as error:
            bench.note_missing(section, name, error)
            continue
        working[name] = run
    return working
