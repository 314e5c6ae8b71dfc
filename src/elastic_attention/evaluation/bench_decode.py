"""Decode attention: one new token a sequence over ragged caches, beside PyTorch's attention over whole ones.

Shape letters: B batch, S tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..attention import decode_attention
from ..config import StreamingConfig
from ..paging import PagedCache
from ..patterns import StreamingPattern
from ..types import HeadRoutes
from .oracle import SEED, OracleMismatch
from .shapes import AttentionShape
from .timing import Run, time_graphs

CELLS = ((32768, 1), (32768, 8), (131072, 1))
RATIOS = (0.0, 0.5, 0.75, 1.0)
CACHE_BYTES = 256 * 2**20  # several times the L2 cache


def measure_gpu_decode(
    cells: Sequence[tuple[int, int]],
    *,
    device: torch.device,
    pattern: StreamingConfig | None = None,
    repeats: int = 9,
) -> Iterator[list[dict[str, Any]]]:
    """Time the decode kernel of this device on (tokens, batch) cells; it is compared with float64 first.

    Yields:
        The rows of one cell, PyTorch's whole cache first, then one a ratio: the shape, kernel, is_dense, msr, bytes
        (keys and values that the routes need), terabytes_per_second of those, the keys of `Timing.as_row`, speedup
        over PyTorch. Caches take turns, so that none lies in the L2 cache from the call before.

    Raises:
        OracleMismatch: the kernel differs; there are no times then.
        torch.OutOfMemoryError: the caches of a cell do not fit.
    """
    pattern, dtype = pattern or StreamingConfig(), torch.bfloat16
    check_decode(pattern, device=device, dtype=dtype)
    for tokens, batch in cells:
        shape = AttentionShape(tokens=tokens, batch=batch)
        routes_of = {int(routes.sum()): routes for routes in map(shape.spread_sparse, RATIOS)}
        facts: dict[str, dict[str, Any]] = {"sdpa": {"is_dense": True, "msr": 0.0, "bytes": _count_bytes(shape, None)}}
        runs = {"sdpa": _plan_dense(shape, device, dtype)}
        for count, routes in sorted(routes_of.items()):
            held = StreamingPattern(pattern).count_held(tokens)
            needed = _count_bytes(shape, [held if is_sparse else tokens for is_sparse in routes.flatten().tolist()])
            facts[f"paged {count}"] = {"is_dense": False, "msr": count / routes.numel(), "bytes": needed}
            runs[f"paged {count}"] = _plan_paged(shape, routes, pattern, needed, device, dtype)
        times = time_graphs(runs, device=device, repeats=repeats)
        dense = times["sdpa"].median
        yield [
            shape.as_row()
            | {"kernel": name.split()[0], **facts[name], "dtype": "bfloat16"}
            | {"terabytes_per_second": facts[name]["bytes"] / timing.median / 1e9, "speedup": dense / timing.median}
            | timing.as_row()
            for name, timing in times.items()
        ]


def check_decode(pattern: StreamingConfig, *, device: torch.device, dtype: torch.dtype) -> float:
    """Compare one token over a ragged cache with float64, a full and a sparse KV head, past the window.

    Returns:
        The largest difference.

    Raises:
        OracleMismatch: it exceeds twice what masked PyTorch attention errs in `dtype`, plus one rounding.
    """
    tokens = pattern.num_sink_tokens + pattern.local_window + 3 * pattern.block_size + 37
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (
        torch.randn(2, heads, length, 64, generator=generator).to(device, dtype)
        for heads, length in ((8, 1), (2, tokens), (2, tokens))
    )
    visible = torch.ones(1, 8, 1, tokens, dtype=torch.bool, device=device)
    position = torch.tensor(tokens - 1, device=device)
    visible[:, 4:] = StreamingPattern(pattern).is_visible(position, torch.arange(tokens, device=device))
    with torch.inference_mode():
        out = decode_attention(q, _fill(k, v, torch.tensor([[False, True]]).expand(2, -1), pattern))
        masked = scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible, enable_gqa=True)
    error, rounding = (float((x.double() - exact).abs().max()) for x in (out, masked))
    bound = 2 * rounding + torch.finfo(dtype).eps * float(exact.abs().max())
    if not error <= bound:  # NaN must fail too
        raise OracleMismatch(
            f"The decode kernel differs from float64 by {error:.2e}, more than the {bound:.2e} that rounding explains "
            f"({dtype}, {tokens} tokens). Do not use its times."
        )
    return error


def _plan_dense(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> Run:
    caches = [shape.draw(device, dtype)[1:] for _ in range(_count_sets(_count_bytes(shape, None)))]
    # The query heads of a KV head as queries: no key is repeated.
    rows = torch.randn(
        shape.batch, shape.num_kv_heads, shape.num_q_heads // shape.num_kv_heads, shape.head_dim,
        device=device, dtype=dtype,
    )  # fmt: skip
    return _take_turns([partial(scaled_dot_product_attention, rows, k.contiguous(), v.contiguous()) for k, v in caches])


def _plan_paged(
    shape: AttentionShape,
    routes: Tensor,
    pattern: StreamingConfig,
    needed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Run:
    q = torch.randn(shape.batch, shape.num_q_heads, 1, shape.head_dim, device=device, dtype=dtype)
    stores = [_fill(*shape.draw(device, dtype)[1:], routes, pattern) for _ in range(_count_sets(needed))]
    return _take_turns([partial(decode_attention, q, store) for store in stores])


def _fill(k: Tensor, v: Tensor, routes: Tensor, pattern: StreamingConfig) -> PagedCache:
    store = PagedCache(StreamingPattern(pattern))
    store.append(k, v)
    store.assign(HeadRoutes(routes))
    store.evict()
    store.settle()
    return store


def _count_bytes(shape: AttentionShape, lengths: Sequence[int] | None) -> int:
    """Keys and values in two bytes each; None = all rows are whole."""
    held = shape.batch * shape.num_kv_heads * shape.tokens if lengths is None else sum(lengths)
    return 2 * 2 * shape.head_dim * held


def _count_sets(needed: int) -> int:
    return math.ceil(CACHE_BYTES / needed)


def _take_turns(calls: Sequence[Callable[[], Tensor]]) -> Run:
    return lambda i: calls[i % len(calls)]()
