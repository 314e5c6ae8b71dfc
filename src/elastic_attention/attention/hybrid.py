"""Inference: one path per head.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, N tokens of a packed batch.
"""

import torch
from torch import Tensor

from ..config import SparsePattern, StreamingConfig, XAttentionConfig
from ..kernels.backends import is_fused, log_choice
from ..kernels.spans import Spans
from ..types import stage
from .blended import blend_paths
from .layout import pack_spans, pad_spans, settle_scale, validate
from .plan import attend_planned, choose_for, has_gradient, make_plan
from .short import LONGEST, attend_short, is_short


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_is_sparse: Tensor,
    *,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig = "full",
    left_padding: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    prompt_lengths: Tensor | None = None,
    spans: Spans | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which each KV head of each sequence reads everything or a sparse part (Elastic Attention, 3.2).

    Args:
        q: (B, H, T, D) float32, float16 or bfloat16, any strides with a contiguous last dimension (as k and v); the
            queries are the last T of S positions. Packed: (N, H, D).
        k, v: (B, G, S, D), G divides H. Packed: (N_k, G, D).
        head_is_sparse: (B, G) bool, True = sparse. Packed: (segments, G).
        pattern: what sparse heads read; positions count real tokens.
        full_pattern: what the other heads read; "full" = everything, an XAttentionConfig beside a StreamingConfig.
        left_padding: (B,) int, padded keys at the start of each sequence; padded rows return 0 and lse -inf.
        cu_seqlens_q, cu_seqlens_k: (segments + 1,) int32, boundaries of a packed batch; k defaults to q's.
        max_seqlen_q: bound on a segment's queries; it only makes launches smaller. Default N.
        prompt_lengths: (B,) or (segments,) int, real prompt tokens of each sequence, cached ones included; XAttention
            and triangle treat later rows as responses. None = all rows are prompt.
        spans: where the sequences lie, instead of the three above; used as it is, unchecked.
        scale: factor of the scores, above 0; default D ** -0.5.
        return_lse: also return the log-sum-exp of the scores, which has no gradient; GPU kernels of XAttention and
            triangle then have none at all.
        backend: "auto" or a name of `backends`.

    Returns:
        out, shape and dtype of q; with `return_lse` also lse, float32 (B, H, T) or (N, H), natural logarithm.

    Raises:
        ValueError: shapes, dtypes or strides do not fit together, or the scale is not positive; the message names them.
        TypeError: `pattern` is no pattern configuration.
        BackendUnavailable: the backend does not exist or cannot run here.
    """
    is_packed = cu_seqlens_q is not None
    num_sequences = None if spans is None else len(spans.query_start)
    if cu_seqlens_q is not None:
        num_sequences = len(cu_seqlens_q) - 1
    validate(q, k, v, head_is_sparse, num_sequences=num_sequences, is_packed=is_packed, prompt_lengths=prompt_lengths)
    if head_is_sparse.dtype != torch.bool:
        raise ValueError(f"head_is_sparse must be bool, got {head_is_sparse.dtype}; True = sparse.")
    if (is_packed and left_padding is not None) or (cu_seqlens_k is not None and not is_packed):
        raise ValueError(
            "A batch is padded (left_padding) or packed (cu_seqlens_q, and cu_seqlens_k); pass one of the two."
        )
    if spans is not None and (is_packed or left_padding is not None):
        raise ValueError("spans say already where the sequences lie; leave out left_padding and cu_seqlens_q.")
    factor = settle_scale(scale, q.shape[-1])
    if cu_seqlens_q is not None:
        cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        spans = pack_spans(cu_seqlens_q, cu_k, q, k, max_seqlen_q)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    elif left_padding is not None:
        spans = pad_spans(left_padding, q, k)
    chosen = choose_for(backend, q, k, v, pattern, full_pattern)
    if backend == "auto" and spans is None and not return_lse and is_short(q, k, pattern, full_pattern, chosen):
        log_choice("sdpa", f"up to {LONGEST} tokens that every head reads take PyTorch's dense attention less time")
        return attend_short(q, k, v, factor)
    is_plain = isinstance(pattern, StreamingConfig) and full_pattern == "full"
    if is_fused(chosen) and not is_plain and not return_lse and has_gradient(q, k, v):
        # The kernels know the gradient of lists and triangles where all heads are alike: a mix of both, by hard routes.
        route = stage(head_is_sparse.float(), q.device)
        out = blend_paths(q, k, v, route, (full_pattern, pattern), factor, spans, prompt_lengths, chosen)
        return out[0].transpose(0, 1) if is_packed else out
    plan = make_plan(q, k, head_is_sparse, pattern, full_pattern, factor, spans, prompt_lengths, chosen)
    out, lse = attend_planned(q, k, v, plan, factor, spans, chosen)
    if is_packed:
        out, lse = out[0].transpose(0, 1), lse[0].transpose(0, 1)
    return (out, lse) if return_lse else out
