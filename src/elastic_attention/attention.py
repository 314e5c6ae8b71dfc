"""The three verbs: hybrid (inference), blended (training) and decode attention. Validate, choose a backend, call.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, N tokens of a packed batch.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import StreamingConfig
from .errors import BackendUnavailable
from .kernels.gather import attend_gather, blend_gather
from .kernels.reference import attend_reference, blend_reference
from .patterns import build_pattern

if TYPE_CHECKING:
    from .cache import ElasticCache, RowGroup

_logger = logging.getLogger(__name__)
_Attend = Callable[[Tensor, Tensor, Tensor, Tensor, StreamingConfig, float], tuple[Tensor, Tensor]]
_Blend = Callable[[Tensor, Tensor, Tensor, Tensor, StreamingConfig, float], Tensor]

_ATTEND: dict[str, _Attend] = {
    "cpu": attend_gather,
    "reference": lambda q, k, v, s, config, scale: attend_reference(q, k, v, s, build_pattern(config), scale),
}
_BLEND: dict[str, _Blend] = {
    "cpu": blend_gather,
    "reference": lambda q, k, v, r, config, scale: blend_reference(q, k, v, r, build_pattern(config), scale),
}


def choose_backend(backend: str) -> str:
    """The backend that `backend` stands for; "auto" logs its choice and reason once.

    Raises:
        BackendUnavailable: there is no such backend.
    """
    if backend == "auto":
        return _log_choice("cpu", "PyTorch's fused kernels on gathered blocks run on every device")
    if backend not in _ATTEND:
        raise BackendUnavailable(f"backend={backend!r} does not exist; use 'auto' or one of {sorted(_ATTEND)}.")
    return backend


@cache
def _log_choice(backend: str, reason: str) -> str:
    _logger.info("backend 'auto' chose %r: %s.", backend, reason)
    return backend


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_is_sparse: Tensor,
    *,
    pattern: StreamingConfig,
    left_padding: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which each KV head of each sequence reads everything or only a sparse part.

    Args:
        q: (B, H, T, D) float32, float16 or bfloat16; the queries are the last T of S positions. Packed: (N, H, D).
        k, v: (B, G, S, D), G divides H. Packed: (N_k, G, D).
        head_is_sparse: (B, G) bool, True = sparse. Packed: (segments, G).
        pattern: what sparse heads read; positions count real tokens.
        left_padding: (B,) int, padded keys at the start of each sequence; padded rows return 0 and lse -inf.
        cu_seqlens_q, cu_seqlens_k: (segments + 1,) int32, boundaries of a packed batch; k defaults to q's.
        scale: factor of the scores, default D ** -0.5.
        return_lse: also return the log-sum-exp of the scores.
        backend: "auto", "cpu" (PyTorch's fused kernels, any device) or "reference" (float64 masks).

    Returns:
        out, shape and dtype of q; with `return_lse` also lse, float32 (B, H, T) or (N, H), natural logarithm.

    Raises:
        ValueError: shapes or dtypes do not fit together; the message names them.
        BackendUnavailable: the backend does not exist or cannot run here.
    """
    attend = _ATTEND[choose_backend(backend)]
    is_packed = cu_seqlens_q is not None
    _validate(q, k, v, head_is_sparse, is_packed=is_packed, segments=cu_seqlens_q)
    if head_is_sparse.dtype != torch.bool:
        raise ValueError(f"head_is_sparse must be bool, got {head_is_sparse.dtype}; True = sparse.")
    if (is_packed and left_padding is not None) or (cu_seqlens_k is not None and not is_packed):
        raise ValueError(
            "A batch is padded (left_padding) or packed (cu_seqlens_q, and cu_seqlens_k); pass one of the two."
        )
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens_q is None and left_padding is None:
        out, lse = attend(q, k, v, head_is_sparse, pattern, factor)
        return (out, lse) if return_lse else out
    if cu_seqlens_q is not None:
        spans = _packed_spans(cu_seqlens_q, cu_seqlens_k if cu_seqlens_k is not None else cu_seqlens_q, q, k)
        q4, k4, v4 = (x.transpose(0, 1)[None] for x in (q, k, v))
    else:
        assert left_padding is not None
        spans = _padded_spans(left_padding, q, k)
        q4, k4, v4 = q, k, v
    out, lse = torch.zeros_like(q4), q4.new_full(q4.shape[:-1], float("-inf"), dtype=torch.float32)
    for row, (b, queries, keys) in enumerate(spans):
        if queries.start == queries.stop:
            continue
        part, part_lse = attend(
            q4[b : b + 1, :, queries],
            k4[b : b + 1, :, keys],
            v4[b : b + 1, :, keys],
            head_is_sparse[row : row + 1],
            pattern,
            factor,
        )
        out[b, :, queries], lse[b, :, queries] = part[0], part_lse[0]
    if is_packed:
        out, lse = out[0].transpose(0, 1), lse[0].transpose(0, 1)
    return (out, lse) if return_lse else out


def blended_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    route: Tensor,
    *,
    pattern: StreamingConfig,
    left_padding: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Both paths of every head, mixed: O = r * O_sparse + (1 - r) * O_full. For training routes.

    Args:
        q: (B, H, T, D); k, v: (B, G, S, D), as in `hybrid_attention`.
        route: (B, G) float in [0, 1], 1 = sparse. Its gradient is <O_sparse - O_full, dL/dO>.
        pattern, left_padding, scale, backend: as in `hybrid_attention`.

    Returns:
        (B, H, T, D), differentiable in q, k, v and route.

    Raises:
        ValueError, BackendUnavailable: as in `hybrid_attention`.
    """
    blend = _BLEND[choose_backend(backend)]
    _validate(q, k, v, route, is_packed=False, segments=None)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if left_padding is None:
        return blend(q, k, v, route, pattern, factor)
    rows = []
    for b, queries, keys in _padded_spans(left_padding, q, k):
        real = blend(
            q[b : b + 1, :, queries], k[b : b + 1, :, keys], v[b : b + 1, :, keys], route[b : b + 1], pattern, factor
        )
        rows.append(torch.nn.functional.pad(real, (0, 0, q.shape[2] - real.shape[2], 0)))
    return torch.cat(rows)


def decode_attention(q: Tensor, cache_layer: "ElasticCache", *, scale: float | None = None) -> Tensor:
    """Attention of one new token a sequence over the ragged cache that already holds it.

    Args:
        q: (B, H, 1, D).
        cache_layer: the layer's cache; every stored token of a row is read.
        scale: factor of the scores, default D ** -0.5.

    Returns:
        (B, H, 1, D).
    """
    batch, num_q_heads, _, width = q.shape
    factor = width**-0.5 if scale is None else scale
    rows_q = q.reshape(batch * cache_layer.num_kv_heads, 1, -1, width)  # the query heads of a row as queries
    out = torch.empty_like(rows_q)
    for group in cache_layer.groups or ():
        if not group.rows:
            continue
        every_row = len(group.rows) == len(rows_q)
        part = _attend_ragged(rows_q if every_row else rows_q[group.index], group, cache_layer, factor)
        if every_row:
            out = part
        else:
            out[group.index] = part
    return out.reshape(batch, num_q_heads, 1, width)


def _attend_ragged(q: Tensor, group: "RowGroup", cache_layer: "ElasticCache", scale: float) -> Tensor:
    lengths = cache_layer.stored_lengths(group)
    longest = max(lengths)
    mask = None
    if min(lengths) < longest:
        ends = torch.tensor(lengths, device=q.device)[:, None, None, None]
        mask = torch.arange(longest, device=q.device) < ends
    k, v = group.keys[:, None, :longest], group.values[:, None, :longest]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _validate(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, *, is_packed: bool, segments: Tensor | None) -> None:
    rank = 3 if is_packed else 4
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, routes {tuple(routes.shape)}"
    if not (q.ndim == k.ndim == rank and k.shape == v.shape):
        raise ValueError(f"q, k and v must have {rank} dimensions and k the shape of v, got {shapes}.")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"q, k and v must share one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them.")
    num_q_heads, num_kv_heads = q.shape[1], k.shape[1]
    if q.shape[-1] != k.shape[-1] or num_kv_heads == 0 or num_q_heads % num_kv_heads:
        raise ValueError(f"head dims must agree and the KV heads divide the query heads, got {shapes}.")
    num_sequences = q.shape[0] if segments is None else len(segments) - 1
    if tuple(routes.shape) != (num_sequences, num_kv_heads):
        raise ValueError(f"routes must be ({num_sequences}, {num_kv_heads}) = (sequences, KV heads), got {shapes}.")
    if not is_packed and (q.shape[0] != k.shape[0] or q.shape[2] > k.shape[2]):
        raise ValueError(f"q and k need one batch size and no more queries than keys, got {shapes}.")


def _padded_spans(left_padding: Tensor, q: Tensor, k: Tensor) -> Iterator[tuple[int, slice, slice]]:
    num_queries, num_keys = q.shape[2], k.shape[2]
    if left_padding.shape != q.shape[:1] or not ((left_padding >= 0) & (left_padding <= num_keys)).all():
        raise ValueError(
            f"left_padding must be ({len(q)},) with values in [0, {num_keys}], got {left_padding.tolist()}."
        )
    for b, padding in enumerate(left_padding.tolist()):
        first_query = max(0, padding - (num_keys - num_queries))
        yield b, slice(first_query, num_queries), slice(padding, num_keys)


def _packed_spans(cu_q: Tensor, cu_k: Tensor, q: Tensor, k: Tensor) -> Iterator[tuple[int, slice, slice]]:
    ends_q, ends_k = cu_q.tolist(), cu_k.tolist()
    lengths = [(b - a, d - c) for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)]
    is_valid = len(ends_q) == len(ends_k) and (ends_q[0], ends_k[0]) == (0, 0) and all(0 <= t <= s for t, s in lengths)
    if not is_valid or ends_q[-1] != len(q) or ends_k[-1] != len(k):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {len(q)} queries and {len(k)} keys with no segment of more queries than "
            f"keys, got {ends_q} and {ends_k}."
        )
    for i in range(len(ends_q) - 1):
        yield 0, slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
