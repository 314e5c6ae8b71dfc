"""Times of the hybrid kernel against PyTorch's causal attention, for routes from all full to all sparse.

Shape letters: T tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import records
from ..attention import hybrid_attention
from ..config import StreamingConfig
from ..patterns import build_pattern
from ..sparsity import count_causal_pairs, count_read_pairs
from .oracle import check_against_oracle
from .session import describe_device, measure_peak_bytes
from .timing import Run, time_interleaved

RATIOS = (0.0, 0.5, 0.7, 1.0)
DTYPES = (torch.float32, torch.bfloat16)
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Heads of one attention layer and what its sparse heads read."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    pattern: StreamingConfig


SHAPES = (
    Shape(
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        pattern=StreamingConfig(num_sink_tokens=64, local_window=512, block_size=64),
    ),
    Shape(
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        pattern=StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128),
    ),
)


def measure_kernels(
    *,
    tokens: int,
    repeats: int,
    device: torch.device,
    backend: str = "auto",
    shapes: Sequence[Shape],
) -> Iterator[list[dict[str, Any]]]:
    """Time each shape and dtype; a shape is compared with the oracle before it is timed.

    Args:
        tokens: T, queries and keys.
        repeats: every repeat runs SDPA and all ratios once, in turn; the rows hold medians.

    Yields:
        The rows of one shape and dtype, one a ratio: tokens, heads, kv_heads, head_dim, dtype, msr (what the nearest
        number of KV heads gives), milliseconds, dense_milliseconds, visited_fraction (token pairs read over
        T(T+1)/2, over query heads) and ratio = milliseconds / (visited_fraction * dense_milliseconds).

    Raises:
        OracleMismatch: the kernel differs from the oracle; there are no times then.
    """
    for shape in shapes:
        for dtype in DTYPES:
            check_against_oracle(
                shape.pattern,
                group_size=shape.num_q_heads // shape.num_kv_heads,
                head_dim=shape.head_dim,
                dtype=dtype,
                device=device,
                backend=backend,
            )
            yield _measure_shape(shape, dtype, tokens=tokens, repeats=repeats, device=device, backend=backend)


def _measure_shape(
    shape: Shape, dtype: torch.dtype, *, tokens: int, repeats: int, device: torch.device, backend: str
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (
        torch.randn(1, heads, tokens, shape.head_dim, generator=generator).to(device, dtype)
        for heads in (shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads)
    )
    counts = [choose_num_sparse(ratio, shape.num_kv_heads) for ratio in RATIOS]
    runs: list[Run] = [lambda _: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)]
    runs += [_make_run(q, k, v, count, shape.pattern, backend) for count in counts]
    with torch.inference_mode():
        for run in runs:  # the first round warms up
            run(0)
        named = {str(number): run for number, run in enumerate(runs)}
        timings = time_interleaved(named, device=device, repeats=repeats)
    dense, *hybrid = (timing.median for timing in timings.values())
    pattern, pairs = build_pattern(shape.pattern), count_causal_pairs(0, tokens)
    rows = []
    for count, milliseconds in zip(counts, hybrid, strict=True):
        read = count_read_pairs(pattern, 0, tokens, num_heads=shape.num_kv_heads, num_sparse=count)
        visited = read / (shape.num_kv_heads * pairs)
        rows.append(
            {
                "tokens": tokens,
                "heads": shape.num_q_heads,
                "kv_heads": shape.num_kv_heads,
                "head_dim": shape.head_dim,
                "dtype": str(dtype).removeprefix("torch."),
                "msr": count / shape.num_kv_heads,
                "milliseconds": milliseconds,
                "dense_milliseconds": dense,
                "visited_fraction": visited,
                "ratio": milliseconds / (visited * dense),
            }
        )
    return rows


def choose_num_sparse(ratio: float, num_kv_heads: int) -> int:
    """The number of sparse KV heads that comes nearest to `ratio`; of two equally near ones the smaller."""
    return min(range(num_kv_heads + 1), key=lambda count: (abs(count - ratio * num_kv_heads), count))


def _make_run(q: Tensor, k: Tensor, v: Tensor, num_sparse: int, pattern: StreamingConfig, backend: str) -> Run:
    is_sparse = (torch.arange(k.shape[1]) < num_sparse)[None]
    return lambda _: hybrid_attention(q, k, v, is_sparse, pattern=pattern, backend=backend)


def build_bench_record(
    rows: Sequence[dict[str, Any]],
    shapes: Sequence[Shape],
    device: torch.device,
    backend: str,
    repeats: int,
    started: float,
) -> records.Record:
    """The record of `elastic-attn bench`."""
    return records.build_record(
        "bench",
        config={"backend": backend, "repeats": repeats, "ratios": RATIOS, "shapes": shapes},
        model=None,
        data="random normal queries, keys and values",
        device=describe_device(device),
        seed=SEED,
        n=len(rows),
        metrics={"rows": list(rows)},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(device),
    )
