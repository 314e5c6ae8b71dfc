"""Training: both paths of every head from one pass over the keys, and the gradient of the mix.

A streaming head reads a part of what a full head reads. So the sweep takes the streaming keys first, writes down the
state it has then (that is the sparse path) and goes on with the keys in between (that is the full path). A kernel of
another backend that is much faster makes the sparse path, then what it leaves out; a small kernel joins and mixes.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...config import StreamingConfig
from ..arguments import count_tiles, name_spans, scale_for_base_two
from ..device import on_its_device
from ..kept import compute_once
from ..spans import Spans
from .backward import Paths, differentiate
from .mixing import Attend, attend_paths, mix_paths
from .shapes import TileShape, choose_shape, shape_grid, takes_descriptors
from .sweep import LOWEST, sweep
from .tiles import (
    LN_2,
    can_describe,
    describe,
    find_window,
    load_real_rows,
    locate_tile,
    store_rows,
)


def blend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    config: StreamingConfig,
    scale: float,
    *,
    spans: Spans | None = None,
    attend: Attend | None = None,
    attend_hidden: Attend | None = None,
    is_fast: bool = False,
) -> Tensor:
    """O = r * O_sparse + (1 - r) * O_full, differentiable in q, k, v and the route r (Elastic Attention, section 3.2).

    Args:
        q: (B, H, T, D), k, v: (B, G, S, D), as in `attend_triton`.
        route: (sequences, G) float in [0, 1], 1 = sparse; read on the device. Beyond these it counts as the nearer one.
        config: what the sparse path reads.
        scale: factor of the scores, positive.
        spans: where the sequences lie; None = every element holds T queries that are the last of S keys.
        attend: a kernel called like `attend_triton` that makes the two paths; None = one pass for both.
        attend_hidden: one called like `hopper.attend_hidden`, which makes what the sparse path leaves out of the full
            one; None = `attend` makes all of it.
        is_fast: its gradients may differ in the last bits from call to call, see `full_gradients`.

    Returns:
        (B, H, T, D) in q's dtype, memory order (B, T, H, D); rows that belong to no sequence are 0.

    Raises:
        ValueError: `scale` is not positive.
    """
    return _Blend.apply(q, k, v, route, config, scale, spans, attend, attend_hidden, is_fast)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        route: Tensor,
        config: StreamingConfig,
        scale: float,
        spans: Spans | None,
        attend: Attend | None,
        attend_hidden: Attend | None,
        is_fast: bool,
    ) -> Tensor:
        shape = choose_shape(q, is_blended=True)
        # Kernels take the routes of a sequence as one row after another. What rounding leaves outside of [0, 1] would
        # mean the logarithm of a negative number, or a head that is left out.
        weights = route.float().clamp(0, 1).contiguous()

        out: Tensor | None = None

        def launch() -> tuple[Tensor, ...]:
            nonlocal out
            given = q, k, v, weights, config, scale, spans
            if attend is not None:
                paths, out = attend_paths(*given, attend, attend_hidden)
                return paths.tensors
            out, paths = launch_blend(*given, shape, takes_descriptors(q))
            return *paths.tensors, out

        results = compute_once(launch)
        paths = Paths.of(results[:4])
        if out is None:  # where the mix is a launch of its own, that costs less than keeping it would
            out = results[4] if attend is None else mix_paths(weights, paths, k.shape[2], spans)
        ctx.save_for_backward(q, k, v, weights, *paths.tensors)
        ctx.config, ctx.scale, ctx.spans, ctx.dtype, ctx.is_fast = config, scale, spans, route.dtype, is_fast
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, *results = ctx.saved_tensors
        paths = Paths.of(results)
        given = ctx.config, ctx.scale, ctx.spans
        dq, dk, dv, d_route = differentiate(grad, q, k, v, weights, paths, *given, is_fast=ctx.is_fast)
        return dq, dk, dv, d_route.to(ctx.dtype), None, None, None, None, None, None


@on_its_device
def launch_blend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    config: StreamingConfig,
    scale: float,
    spans: Spans | None,
    shape: TileShape,
    use_descriptors: bool,
) -> tuple[Tensor, Paths]:
    """The forward pass with a given tile shape: the mix and what the backward pass needs of both paths."""
    factor = scale_for_base_two(scale)
    batch, num_q_heads, num_queries, head_dim = q.shape
    num_kv_heads, num_keys = k.shape[1:3]
    # Rows of no sequence in a packed batch are written by nobody.
    make = torch.zeros if spans is not None and spans.is_packed else torch.empty
    out, sparse, full = (
        make(batch, num_queries, num_q_heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
        for _ in range(3)
    )
    sparse_lse, full_lse = (
        torch.full((batch, num_q_heads, num_queries), float("-inf"), device=q.device) for _ in range(2)
    )
    paths = Paths(sparse=sparse, full=full, sparse_lse=sparse_lse, full_lse=full_lse)
    if not out.numel():
        return out, paths
    sources: tuple[Any, ...] = (q, k, v, out, full)
    is_described = use_descriptors and can_describe(*sources)
    if is_described:
        rows = shape.queries, shape.keys, shape.keys, shape.queries, shape.queries
        sources = tuple(describe(x, n) for x, n in zip(sources, rows, strict=True))
    num_tiles = count_tiles(num_queries, num_keys, spans, shape.queries)
    group_size = num_q_heads // num_kv_heads
    row_bytes = 2 * num_keys * head_dim * k.element_size()
    _blend[shape_grid(route.shape[0] * num_kv_heads, group_size, num_tiles, row_bytes)](
        *sources,
        *(q, k, v, out, sparse, full, sparse_lse, full_lse, route),
        *name_spans(spans, q),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        out.stride(2),
        num_queries,
        num_keys,
        num_kv_heads,
        factor,
        GROUP=group_size,
        SINK=config.num_sink_tokens,
        LOCAL=config.local_window,
        BLOCK=config.block_size,
        D=head_dim,
        QUERIES=shape.queries,
        KEYS=shape.keys,
        DESCRIPTORS=is_described,
        RAGGED=spans is not None,
        PACKED=spans is not None and spans.is_packed,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return out, paths


@triton.jit(do_not_specialize=["T", "S", "num_kv_heads"])
def _blend(
    q_desc, k_desc, v_desc, out_desc, full_desc, q, k, v, out, sparse, full, sparse_lse, full_lse, routes,
    query_starts, query_lengths, key_starts, key_lengths,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_row,
    T, S, num_kv_heads, scale,
    GROUP: tl.constexpr, SINK: tl.constexpr, LOCAL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, RAGGED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    EDGES: tl.constexpr = BLOCK % QUERIES != 0 or BLOCK % KEYS != 0  # a tile holds seen and hidden pairs
    WHOLE: tl.constexpr = DESCRIPTORS and not PACKED  # all rows of the tensor are this sequence's to write
    (
        sequence, batch, kv_head, head, behind, first, shift, first_real, num_keys, first_kept, stop_kept, key_start
    ) = locate_tile(
        query_starts, query_lengths, key_starts, key_lengths, T, S, num_kv_heads,
        GROUP, QUERIES, RAGGED, PACKED,
    )  # fmt: skip
    if first + QUERIES <= first_kept:
        return
    row = first - shift
    out_start = batch.to(tl.int64) * T * out_row + head * D
    lse_start = (batch * num_kv_heads * GROUP + head).to(tl.int64) * T
    queries = first + tl.arange(0, QUERIES)
    rows = row + tl.arange(0, QUERIES)
    is_kept = (queries >= first_kept) & (queries < stop_kept)
    is_real = (queries >= first_real) & (queries < num_keys)
    has_queries = (first + QUERIES > first_real) & (first < num_keys)

    stop = tl.cdiv(tl.minimum(first + QUERIES, num_keys), KEYS)
    diagonal = first // KEYS
    opens, opened = find_window(first, QUERIES, KEYS, LOCAL, BLOCK)
    before = tl.minimum(tl.cdiv(SINK, KEYS), opens)
    count = tl.where(has_queries, before + stop - opens, 0)
    if DESCRIPTORS:
        q_tile = q_desc.load([batch, head, row, 0]).reshape(QUERIES, WIDTH)
    else:
        q_base = q + batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        q_tile = load_real_rows(q_base, row, q_row, T, QUERIES, D)
    k_base = k + batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head + key_start.to(tl.int64) * k_row
    v_base = v + batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head + key_start.to(tl.int64) * v_row
    acc, total, highest = sweep(
        tl.zeros([QUERIES, WIDTH], tl.float32), tl.zeros([QUERIES], tl.float32), tl.full([QUERIES], LOWEST, tl.float32),
        q_tile, k_desc, v_desc, k_base, v_base, k_row, v_row, batch, kv_head, key_start, num_keys,
        queries, False, scale, count, stop - 1, before, opens - before,
        opened, diagonal,
        k, 0, False, SINK, LOCAL, BLOCK, "seen" if EDGES else "causal", D, KEYS, DESCRIPTORS, RAGGED, 0,
    )  # fmt: skip
    result = tl.where(is_real[:, None], acc * (1.0 / total)[:, None], 0.0)
    # Through pointers: a barrier orders those before the reload below, the copy engine's writes it would not.
    store_rows(sparse, sparse + out_start, 0, 0, row, T, out_row, is_kept, result, QUERIES, D, False)
    tl.store(sparse_lse + lse_start + rows, (highest + tl.math.log2(total)) * LN_2, mask=is_real & is_kept)

    hidden = SINK // KEYS
    count = tl.where(has_queries, tl.maximum(tl.minimum(opened, stop) - hidden, 0), 0)
    acc, total, highest = sweep(
        acc, total, highest,
        q_tile, k_desc, v_desc, k_base, v_base, k_row, v_row, batch, kv_head, key_start, num_keys,
        queries, False, scale, count, hidden + count - 1, 0, hidden,
        tl.cdiv(SINK, KEYS), opens,
        k, 0, False, SINK, LOCAL, BLOCK, "hidden" if EDGES else "none", D, KEYS, DESCRIPTORS, RAGGED, 0,
    )  # fmt: skip
    result = tl.where(is_real[:, None], acc * (1.0 / total)[:, None], 0.0)
    store_rows(full_desc, full + out_start, batch, head, row, T, out_row, is_kept, result, QUERIES, D, WHOLE)
    tl.store(full_lse + lse_start + rows, (highest + tl.math.log2(total)) * LN_2, mask=is_real & is_kept)

    # The sparse path comes back from memory: keeping it would cost the sweep above a quarter of its registers.
    tl.debug_barrier()
    route = tl.load(routes + sequence * num_kv_heads + kv_head)
    other = load_real_rows(sparse + out_start, row, out_row, T, QUERIES, D).to(tl.float32)
    result = route * other + (1 - route) * result
    store_rows(out_desc, out + out_start, batch, head, row, T, out_row, is_kept, result, QUERIES, D, WHOLE)
