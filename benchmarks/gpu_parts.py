"""The kernels besides prefill and decode: the router, both paths of training, XAttention's choice and its lists."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sections import KernelBench
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from elastic_attention import RouterConfig, StreamingConfig, blended_attention
from elastic_attention.config import XAttentionConfig
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.bench_gpu import Attend
from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.evaluation.timing import Run, time_graphs, time_interleaved
from elastic_attention.kernels.block_lists import BlockLists, pack_mask
from elastic_attention.kernels.masked import attend_masked
from elastic_attention.kernels.modes import FULL, LISTS
from elastic_attention.kernels.reference import attend_modes
from elastic_attention.kernels.xattention import choose_blocks
from elastic_attention.router import AttentionRouter

PATTERN = StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128)


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
        if not bench.is_due("router", batch=batch):
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


def measure_blended(bench: KernelBench) -> None:
    """Training: both paths of every head, forward and forward with backward, beside dense attention."""
    dense, _ = bench.find_dense()
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    for tokens in bench.options.blended_lengths:
        shape = AttentionShape(tokens=tokens, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        if not bench.is_due("blended", **shape.as_row()):
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
    build_block_lists = _load_choice(bench.device)
    dense, attends = bench.find_dense()[0], {}
    for name, attend in _load_list_kernels(bench).items():
        try:
            check_lists(name, attend, bench.device, bench.dtype)
        except ElasticAttentionError as error:
            bench.note_missing("xattention", name, error)
            continue
        attends[name] = attend
    q_heads, kv_heads, head_dim = bench.options.heads[0]
    scale = head_dim**-0.5
    for tokens in bench.options.xattention_lengths:
        shape = AttentionShape(tokens=tokens, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        if not bench.is_due("xattention", **shape.as_row()):
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


def check_lists(name: str, attend: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> float:
    """Compare attention over block lists with the oracle over the same lists: an odd length, listed and full heads.

    Raises:
        OracleMismatch: it differs by more than twice what masked PyTorch attention errs, plus one rounding.
    """
    tokens, block, scale = 677, 128, 0.125
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, tokens, 64, device=device, dtype=dtype, generator=generator) for heads in (8, 2, 2)
    )
    chosen = torch.rand(1, 8, 6, 6, device=device, generator=generator) < 0.5
    chosen |= torch.eye(6, dtype=torch.bool, device=device)
    lists = pack_mask(chosen.tril(), torch.zeros(1, dtype=torch.long, device=device), block)
    modes = torch.tensor([[LISTS, FULL]], dtype=torch.int32, device=device)
    visible = chosen.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :tokens, :tokens]
    visible[:, 4:] = True
    with torch.inference_mode():
        exact = attend_modes(q.double(), k.double(), v.double(), modes, PATTERN, scale, lists=lists)[0]
        masked = scaled_dot_product_attention(q, k, v, attn_mask=visible.tril(), scale=scale, enable_gqa=True)
        out = attend(q, k, v, modes, PATTERN, scale, lists=lists)[0]
    error, rounding = (float((x.double() - exact).abs().max()) for x in (out, masked))
    bound = 2 * rounding + torch.finfo(dtype).eps * float(exact.abs().max())
    if not error <= bound:
        raise OracleMismatch(
            f"{name!r} over block lists differs from the oracle by {error:.2e}, more than {bound:.2e}."
        )
    return error


def _run_choice(
    build: Callable[..., Any], q: Tensor, k: Tensor, modes: Tensor, config: Any, scale: float, _: int
) -> Any:
    return build(q, k, modes, config, scale)


def _run_lists(
    attend: Callable[..., Any], inputs: Sequence[Tensor], modes: Tensor, lists: Any, scale: float, _: int
) -> Any:
    return attend(*inputs, modes, PATTERN, scale, lists=lists)


def _load_choice(device: torch.device) -> Callable[..., BlockLists]:
    """What scores and selects: the kernels on a GPU, plain PyTorch elsewhere."""
    if device.type == "cuda":
        from elastic_attention.kernels.triton.xattention import build_block_lists

        return build_block_lists
    return lambda q, k, modes, config, scale: choose_blocks(q, k, config, scale)


def _load_list_kernels(bench: KernelBench) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    if "triton" in bench.backends:
        from elastic_attention.kernels.triton.prefill import attend_triton

        found["triton"] = attend_triton
    if "hopper" in bench.backends:
        from elastic_attention.kernels.hopper import attend_hopper

        found["hopper"] = attend_hopper
    if "cpu" in bench.backends:
        found["cpu"] = attend_masked
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
