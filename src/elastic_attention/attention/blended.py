"""Training: both paths of every head, mixed by the route.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, N tokens of a packed batch.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import SparsePattern, StreamingConfig, XAttentionConfig
from ..kernels.backends import is_fused
from ..kernels.block_lists import BlockLists, count_rows, find_first_blocks
from ..kernels.gather import blend_gather
from ..kernels.reference import blend_reference
from ..kernels.spans import Spans, list_spans
from ..patterns import build_pattern
from .layout import pad_spans, settle_scale, validate
from .plan import Plan, attend_planned, choose_for, make_plan


def blended_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    *,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig = "full",
    left_padding: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    spans: Spans | None = None,
    scale: float | None = None,
    backend: str = "auto",
    fast_gradients: bool = False,
) -> Tensor:
    """Both paths of every head, mixed: O = r * O_sparse + (1 - r) * O_full (Elastic Attention, section 3.2).

    For training routes; inference takes `hybrid_attention`.

    Args:
        q: (B, H, T, D); k, v: (B, G, S, D), dtypes and strides as in `hybrid_attention`.
        route: (B, G) float in [0, 1], 1 = sparse. Its gradient is <O_sparse - O_full, dL/dO>.
        pattern, full_pattern, left_padding, prompt_lengths, spans, scale, backend: as in `hybrid_attention`.
        fast_gradients: those of full heads may come from cuDNN where that is faster (streaming patterns on Hopper
            GPUs): equal calls then differ in the last bits.

    Returns:
        (B, H, T, D) of q's dtype, differentiable in q, k, v and route.

    Raises:
        ValueError, TypeError, BackendUnavailable: as in `hybrid_attention`.
    """
    num_sequences = None if spans is None else len(spans.query_start)
    validate(q, k, v, route, num_sequences=num_sequences, is_packed=False, prompt_lengths=prompt_lengths)
    factor = settle_scale(scale, q.shape[-1])
    if left_padding is not None:
        if spans is not None:
            raise ValueError("spans say already where the sequences lie; leave out left_padding.")
        spans = pad_spans(left_padding, q, k)
    chosen = choose_for(backend, q, k, v, pattern, full_pattern, is_training=True)
    if not isinstance(pattern, StreamingConfig) or full_pattern != "full":
        return blend_paths(q, k, v, route, (full_pattern, pattern), factor, spans, prompt_lengths, chosen)
    if is_fused(chosen):
        from ..kernels.triton.blended import blend_triton

        kernels: dict[str, Any] = {}
        if chosen == "hopper":
            from ..kernels.hopper import attend_hidden, attend_hopper
            from ..kernels.hopper.schedule import TILE

            is_whole = pattern.block_size % TILE == 0
            kernels = {"attend": attend_hopper, "attend_hidden": attend_hidden if is_whole else None}
        return blend_triton(q, k, v, route, pattern, factor, spans=spans, is_fast=fast_gradients, **kernels)
    if spans is None:
        return _blend(q, k, v, route, pattern, factor, chosen)
    out = torch.zeros_like(q)
    for row, b, queries, keys in list_spans(spans, q, k):
        part = q[b : b + 1, :, queries], k[b : b + 1, :, keys], v[b : b + 1, :, keys]
        out[b, :, queries] = _blend(*part, route[row : row + 1], pattern, factor, chosen)[0]
    return out


def _blend(
    q: Tensor, k: Tensor, v: Tensor, route: Tensor, pattern: StreamingConfig, scale: float, backend: str
) -> Tensor:
    if backend == "reference":
        return blend_reference(q, k, v, route, build_pattern(pattern), scale)
    return blend_gather(q, k, v, route, pattern, scale)


def blend_paths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    paths: tuple[str | XAttentionConfig, SparsePattern],
    scale: float,
    spans: Spans | None,
    prompt_lengths: Tensor | None,
    backend: str,
) -> Tensor:
    """Two passes, for the patterns without a kernel that does both in one; the choice of blocks has no gradient.

    Args:
        paths: full and sparse pattern of `blended_attention`, whose other arguments these are; packed q has one row.
        route: (sequences, G) float.
        backend: a name, not "auto".
    """
    outs = []
    for path in paths:
        routes = torch.full(route.shape, path != "full", device=q.device)
        pattern = StreamingConfig() if isinstance(path, str) else path
        plan = make_plan(q, k, routes, pattern, "full", scale, spans, prompt_lengths, backend)
        outs.append(_attend_path(q, k, v, plan, scale, spans, backend))
    # The route's gradient is a sum over all tokens of a sequence, too long for 16 bits.
    wide = torch.promote_types(q.dtype, torch.float32)
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1).to(wide)
    if spans is not None and spans.is_packed:  # one row of tokens, each with the weight of its sequence
        stops = spans.query_start + spans.query_length
        rows = torch.arange(q.shape[2], dtype=stops.dtype, device=q.device)
        sequences = torch.searchsorted(stops, rows, right=True).clamp(max=len(stops) - 1)
        weight = weight.index_select(0, sequences).T[None, ..., None]
    else:
        weight = weight[..., None, None]
    return torch.lerp(outs[0].to(wide), outs[1].to(wide), weight).to(q.dtype)


def _attend_path(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, spans: Spans | None, backend: str
) -> Tensor:
    if not is_fused(backend):
        return attend_planned(q, k, v, plan, scale, spans, backend)[0]
    if plan.is_plain:
        from ..kernels.triton.prefill import attend_triton

        return attend_triton(q, k, v, plan.modes, plan.config, scale, spans=spans)[0]
    from ..kernels.triton.block_gradients import attend_blocks

    attend = partial(attend_planned, plan=plan, scale=scale, spans=spans, backend=backend)
    block_size = plan.config.block_size if plan.lists is None else plan.lists.block_size
    sizes = len(plan.modes), q.shape[2], k.shape[2], block_size
    lists = () if plan.lists is None else (plan.lists.counts, plan.lists.indices)
    show = partial(_show_blocks, sizes, plan.config, spans, q.device)
    return attend_blocks(q, k, v, attend, show, lists, plan.dense_rows, block_size, scale, spans)


def _show_blocks(
    sizes: tuple[int, int, int, int], config: StreamingConfig, spans: Spans | None, device: torch.device, *lists: Tensor
) -> Tensor:
    """(sequences, H or 1, M, N) bool: which key blocks the query blocks of listed or triangle heads read.

    Args:
        sizes: sequences, T, S, tokens of a block.
        config: of triangle heads.
        lists: counts and indices of `BlockLists`, for listed heads.
    """
    first = find_first_blocks(*sizes, spans).to(device)
    rows, blocks = count_rows(*sizes[1:], spans)
    block_size = sizes[-1]
    if lists:
        return BlockLists(counts=lists[0], indices=lists[1], block_size=block_size).to_mask(first, blocks)
    queries = (first[:, None] + torch.arange(rows, device=first.device))[:, None, :, None]
    keys = torch.arange(blocks, device=first.device)
    return (keys < config.num_sink_tokens // block_size) | (keys > queries - config.local_window // block_size)
