"""Training: both paths of every head, mixed by the route.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, N tokens of a packed batch.
"""

import torch
from torch import Tensor

from ..config import SparsePattern, StreamingConfig, XAttentionConfig
from ..errors import BackendUnavailable
from ..kernels.backends import is_fused
from ..kernels.gather import blend_gather
from ..kernels.reference import blend_reference
from ..kernels.spans import Spans, list_spans
from ..patterns import build_pattern
from .layout import pad_spans, validate
from .plan import attend_planned, choose_for, make_plan


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
) -> Tensor:
    """Both paths of every head, mixed: O = r * O_sparse + (1 - r) * O_full. For training routes.

    Args:
        q: (B, H, T, D); k, v: (B, G, S, D), as in `hybrid_attention`.
        route: (B, G) float in [0, 1], 1 = sparse. Its gradient is <O_sparse - O_full, dL/dO>.
        pattern, full_pattern, left_padding, prompt_lengths, spans, scale, backend: as in `hybrid_attention`.

    Returns:
        (B, H, T, D), differentiable in q, k, v and route.

    Raises:
        ValueError: as in `hybrid_attention`.
        BackendUnavailable: as in `hybrid_attention`, or the backend has no gradient for these patterns.
    """
    validate(q, k, v, route, num_sequences=None if spans is None else len(spans.query_start), is_packed=False)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if left_padding is not None:
        spans = pad_spans(left_padding, q, k)
    chosen = choose_for(backend, q, k, v, pattern, is_training=True)
    if not isinstance(pattern, StreamingConfig) or full_pattern != "full":
        if is_fused(chosen) and backend != "auto":
            raise BackendUnavailable(
                f"backend={backend!r} has a gradient for streaming heads beside full ones only, not for "
                f"pattern={pattern!r} with full_pattern={full_pattern!r}; use 'auto' or 'cpu'."
            )
        plain = "cpu" if is_fused(chosen) else chosen
        return _blend_plans(q, k, v, route, pattern, full_pattern, factor, spans, prompt_lengths, plain)
    if is_fused(chosen):
        from ..kernels.triton.blended import blend_triton

        if chosen == "hopper":
            from ..kernels.hopper import attend_hopper

            return blend_triton(q, k, v, route, pattern, factor, spans=spans, attend=attend_hopper)
        return blend_triton(q, k, v, route, pattern, factor, spans=spans)
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


def _blend_plans(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig,
    scale: float,
    spans: Spans | None,
    prompt_lengths: Tensor | None,
    backend: str,
) -> Tensor:
    """Two passes, for the patterns without a kernel that does both in one; the choice of blocks has no gradient."""
    outs = []
    for is_sparse in (False, True):
        routes = torch.full(route.shape, is_sparse, device=q.device)
        plan = make_plan(q, k, routes, pattern, full_pattern, scale, spans, prompt_lengths, backend)
        outs.append(attend_planned(q, k, v, plan, scale, spans, backend)[0])
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1).to(q.dtype)
    if spans is not None and spans.is_packed:  # one row of tokens, each with the weight of its sequence
        weight = weight.repeat_interleave(spans.query_length.long(), dim=0, output_size=q.shape[2]).T[None, ..., None]
    else:
        weight = weight[..., None, None]
    return torch.lerp(outs[0], outs[1], weight)
