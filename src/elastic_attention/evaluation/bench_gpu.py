"""Prefill attention of one shape, every kernel beside its peers in one run.

Shape letters: B batch, S tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .. import records
from ..attention import hybrid_attention
from ..config import StreamingConfig
from ..errors import ElasticAttentionError
from ..kernels.backends import choose_backend
from .oracle import check_against_oracle
from .session import describe_device, measure_peak_bytes
from .shapes import SEED, AttentionShape
from .timing import Run, Timing, time_interleaved

Row = dict[str, Any]

LENGTHS = (8192, 32768, 131072)
RATIOS = (0.0, 0.5, 0.7, 1.0)
LENGTH_SECONDS = 10.0  # for the repeats of one length
MAX_ERROR = 1e-2  # relative difference of two right bfloat16 results; a wrong mask makes far more

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (B, H, S, D), k and v (B, G, S, D) -> (B, H, S, D)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A way to compute prefill attention.

    Attributes:
        prepare: routes (B, G) bool on the device -> the call; plans and index lists are made here, outside the times.
        is_dense: it ignores routes.
        is_exact: its sparse heads follow the block rule, so that its results can be compared.
    """

    name: str
    prepare: Callable[[Tensor], Attend]
    is_dense: bool = False
    is_exact: bool = True


def own_kernel(backend: str, pattern: StreamingConfig) -> Kernel:
    """`hybrid_attention` of one backend."""

    def prepare(routes: Tensor) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = hybrid_attention(q, k, v, routes, pattern=pattern, backend=backend)
            assert isinstance(out, Tensor)
            return out

        return attend

    return Kernel(name=backend, prepare=prepare)


def torch_kernels(device: torch.device) -> list[Kernel]:
    """PyTorch's dense attention: on CUDA its flash and its cuDNN kernel, elsewhere what it chooses."""

    def make(name: str, backend: SDPBackend | None) -> Kernel:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if backend is None:
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return Kernel(name=name, prepare=lambda routes: attend, is_dense=True)

    if device.type != "cuda":
        return [make("sdpa", None)]
    return [make("sdpa flash", SDPBackend.FLASH_ATTENTION), make("sdpa cudnn", SDPBackend.CUDNN_ATTENTION)]


def measure_gpu_kernels(
    lengths: Sequence[int],
    *,
    device: torch.device,
    backend: str = "auto",
    pattern: StreamingConfig | None = None,
    repeats: int = 9,
) -> Iterator[tuple[list[Row], list[Row]]]:
    """Time one backend beside PyTorch's dense kernels; it is compared with the oracle first.

    Args:
        lengths: tokens of each measurement.

    Yields:
        What `measure_prefill` returns for one length, the rows with dtype and backend.

    Raises:
        OracleMismatch: the backend differs from the oracle; there are no times then.
        BackendUnavailable: it cannot run here.
        torch.OutOfMemoryError: a length is too long for the device.
    """
    pattern, dtype, shape = pattern or StreamingConfig(), torch.bfloat16, AttentionShape(tokens=0)
    name = choose_backend(backend, device, dtype, shape.head_dim, block_size=pattern.block_size)
    check_against_oracle(
        pattern,
        group_size=shape.num_q_heads // shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=dtype,
        device=device,
        backend=name,
    )
    for tokens in lengths:
        rows, failures = measure_prefill(
            replace(shape, tokens=tokens),
            [own_kernel(name, pattern), *torch_kernels(device)],
            RATIOS,
            pattern=pattern,
            device=device,
            dtype=dtype,
            repeats=repeats,
            max_seconds=LENGTH_SECONDS,
        )
        yield [row | {"dtype": "bfloat16", "backend": name} for row in rows], failures


def build_gpu_record(
    metrics: Mapping[str, Sequence[Row]],
    *,
    device: torch.device,
    backend: str,
    repeats: int,
    started: float,
) -> records.Record:
    """The record of `elastic-attn bench` on a GPU: `rows` of prefill, `decode`, and what could not run, `missing`."""
    return records.build_record(
        "bench",
        config={"backend": backend, "repeats": repeats, "ratios": RATIOS, "pattern": StreamingConfig()},
        model=None,
        data="random normal queries, keys and values",
        device=describe_device(device),
        seed=SEED,
        n=len(metrics["rows"]) + len(metrics["decode"]),
        metrics=metrics,
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(device),
    )


def measure_prefill(
    shape: AttentionShape,
    kernels: Sequence[Kernel],
    ratios: Sequence[float],
    *,
    pattern: StreamingConfig,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 10,
    max_seconds: float = math.inf,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time kernels on one shape, side by side in one run.

    Args:
        kernels: dense ones run once, the others at every ratio. At each ratio the first exact kernel that works is
            what the others are compared with.
        ratios: wanted model sparsity ratios; equal numbers of sparse heads are measured once.

    Returns:
        Rows, one a kernel and ratio: the shape, kernel, is_dense, msr, visited_fraction, teraflops (on computed
        blocks), relative_error (against the first kernel), the keys of `Timing.as_row`, best_dense (a kernel's name),
        dense_milliseconds and speedup (both against that kernel), ratio = milliseconds / (visited_fraction *
        dense_milliseconds). And rows of what failed: the shape, kernel, msr, reason.
    """
    q, k, v = shape.draw(device, dtype)
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    failures: list[dict[str, Any]] = []
    routes_of = {int(routes.sum()): routes for routes in map(shape.spread_sparse, (0.0, *ratios))}
    wanted = {int(shape.spread_sparse(ratio).sum()) for ratio in ratios}
    for count, routes in sorted(routes_of.items()):
        expected: Tensor | None = None
        for kernel in kernels:
            if (kernel.is_dense and count) or (not kernel.is_dense and count not in wanted):
                continue
            label, msr = f"{kernel.name} {count}", count / routes.numel()
            try:
                attend = kernel.prepare(routes.to(device))
                sample = _pick_rows(attend(q, k, v))
                attend(q, k, v)
                error = None if expected is None or not kernel.is_exact else _relative_error(sample, expected)
            except (RuntimeError, ValueError, TypeError, ImportError, ElasticAttentionError) as problem:
                failures.append(shape.as_row() | {"kernel": kernel.name, "msr": msr, "reason": _shorten(problem)})
                continue
            if error is not None and not error <= MAX_ERROR:
                reason = f"differs from {kernels[0].name} by {error:.2e}"
                failures.append(shape.as_row() | {"kernel": kernel.name, "msr": msr, "reason": reason})
                continue
            expected = sample if expected is None and kernel.is_exact else expected
            runs[label] = partial(_attend_once, attend, q, k, v)
            facts[label] = {"kernel": kernel.name, "is_dense": kernel.is_dense, "msr": msr, "relative_error": error} | {
                "visited_fraction": shape.visited_fraction(routes, pattern),
                "flops": shape.count_flops(routes, pattern),
            }
    timings = time_interleaved(runs, device=device, repeats=repeats, max_seconds=max_seconds)
    return _finish_rows(shape, facts, timings), failures


def _attend_once(attend: Attend, q: Tensor, k: Tensor, v: Tensor, _: int) -> Tensor:
    return attend(q, k, v)


def _finish_rows(
    shape: AttentionShape, facts: Mapping[str, dict[str, Any]], timings: Mapping[str, Timing]
) -> list[dict[str, Any]]:
    dense = {facts[label]["kernel"]: t.median for label, t in timings.items() if facts[label]["is_dense"]}
    best = min(dense, key=lambda name: dense[name], default=None)
    rows = []
    for label, timing in timings.items():
        fact = dict(facts[label])
        row = shape.as_row() | timing.as_row() | {"teraflops": fact.pop("flops") / timing.median / 1e9} | fact
        if best is not None:
            row |= {"best_dense": best, "dense_milliseconds": dense[best], "speedup": dense[best] / timing.median}
            row["ratio"] = timing.median / (row["visited_fraction"] * dense[best])
        rows.append(row)
    return rows


def _pick_rows(out: Tensor) -> Tensor:
    """Rows at the start, in the middle and at the end: enough to see a wrong mask, little enough to keep."""
    tokens = out.shape[2]
    size = min(512, tokens)
    return torch.cat([out[:, :, start : start + size] for start in (0, (tokens - size) // 2, tokens - size)], dim=2)


def _relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.float() - expected.float()).norm() / expected.float().norm())


def _shorten(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
