"""Checking shapes, and where the sequences of a padded or packed batch lie.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, N tokens of a packed batch.
"""

from torch import Tensor

from ..kernels.spans import Spans
from ..types import stage


def validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    *,
    num_sequences: int | None,
    is_packed: bool,
    prompt_lengths: Tensor | None,
) -> None:
    """Refuse shapes, dtypes and strides that do not fit together.

    Args:
        q: (B, H, T, D); k, v: (B, G, S, D). Packed: (N, H, D) and (N_k, G, D).
        routes: (sequences, G).
        num_sequences: None = one an element of the batch, each with all T queries and S keys.
        prompt_lengths: (sequences,) int.

    Raises:
        ValueError: they do not; names what and its value.
    """
    rank = 3 if is_packed else 4
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, routes {tuple(routes.shape)}"
    if not (q.ndim == k.ndim == rank and k.shape == v.shape):
        raise ValueError(f"q, k and v must have {rank} dimensions and k the shape of v, got {shapes}.")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"q, k and v must share one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them.")
    if q.shape[-1] > 1 and not (q.stride(-1) == k.stride(-1) == v.stride(-1) == 1):  # kernels step from row to row only
        raise ValueError(
            f"q, k and v must be contiguous in their last dimension, got strides {q.stride()}, {k.stride()}, "
            f"{v.stride()}; call contiguous() on them."
        )
    num_q_heads, num_kv_heads = q.shape[1], k.shape[1]
    if q.shape[-1] != k.shape[-1] or num_kv_heads == 0 or num_q_heads % num_kv_heads:
        raise ValueError(f"head dims must agree and the KV heads divide the query heads, got {shapes}.")
    is_plain = num_sequences is None
    if num_sequences is None:
        num_sequences = len(q)
    if tuple(routes.shape) != (num_sequences, num_kv_heads):
        raise ValueError(f"routes must be ({num_sequences}, {num_kv_heads}) = (sequences, KV heads), got {shapes}.")
    if prompt_lengths is not None and (
        tuple(prompt_lengths.shape) != (num_sequences,) or prompt_lengths.is_floating_point()
    ):
        raise ValueError(
            f"prompt_lengths must be ({num_sequences},) integers, one a sequence, got {tuple(prompt_lengths.shape)} "
            f"{prompt_lengths.dtype}."
        )
    if is_plain and (q.shape[0] != k.shape[0] or q.shape[2] > k.shape[2]):
        raise ValueError(f"q and k need one batch size and no more queries than keys, got {shapes}.")


def settle_scale(scale: float | None, head_dim: int) -> float:
    """The factor of the scores: `scale`, or D ** -0.5 for None.

    Raises:
        ValueError: it is not positive.
    """
    factor = head_dim**-0.5 if scale is None else scale
    if not factor > 0:
        raise ValueError(f"scale={scale} must be positive; leave it out for D ** -0.5.")
    return factor


def pad_spans(left_padding: Tensor, q: Tensor, k: Tensor) -> Spans:
    """Spans of a batch with `left_padding` (B,) padded keys before each sequence; q (B, H, T, D), k (B, G, S, D).

    Raises:
        ValueError: another shape, or more padding than keys (looked at on the CPU alone).
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    # Values on a GPU are not looked at: that would make the host wait.
    is_checked = left_padding.device.type != "cpu" or bool(((left_padding >= 0) & (left_padding <= num_keys)).all())
    if left_padding.shape != q.shape[:1] or not is_checked:
        raise ValueError(
            f"left_padding must be ({len(q)},) with values in [0, {num_keys}], got {left_padding.tolist()}."
        )
    padding = stage(left_padding.int(), q.device)
    length = num_keys - padding
    taken = length.clamp(max=num_queries)
    return Spans(
        query_start=num_queries - taken,
        query_length=taken,
        key_start=padding,
        key_length=length,
        is_packed=False,
        max_query_length=num_queries,
    )


def pack_spans(cu_q: Tensor, cu_k: Tensor, q: Tensor, k: Tensor, max_seqlen_q: int | None) -> Spans:
    """Spans of a packed batch, q (N, H, D) and k (N_k, G, D), from its boundaries (segments + 1,).

    Raises:
        ValueError: the boundaries differ in shape, do not rise to the ends, or `max_seqlen_q` is too small (values are
            looked at on the CPU alone).
    """
    if cu_q.shape != cu_k.shape:
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must have one shape, got {cu_q.shape} and {cu_k.shape}.")
    if cu_q.device.type == "cpu":
        _check_boundaries(cu_q.tolist(), cu_k.tolist(), len(q), len(k))
        if max_seqlen_q is not None and bool((cu_q.diff() > max_seqlen_q).any()):  # later queries would not be computed
            raise ValueError(
                f"max_seqlen_q={max_seqlen_q} is less than a segment's queries, cu_seqlens_q={cu_q.tolist()}."
            )
    cu_q, cu_k = stage(cu_q.int(), q.device), stage(cu_k.int(), q.device)
    return Spans(
        query_start=cu_q[:-1],
        query_length=cu_q.diff(),
        key_start=cu_k[:-1],
        key_length=cu_k.diff(),
        is_packed=True,
        max_query_length=len(q) if max_seqlen_q is None else max_seqlen_q,
    )


def _check_boundaries(ends_q: list[int], ends_k: list[int], num_queries: int, num_keys: int) -> None:
    lengths = [(b - a, d - c) for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)]
    is_rising = (ends_q[0], ends_k[0]) == (0, 0) and all(0 <= t <= s for t, s in lengths)
    if not is_rising or (ends_q[-1], ends_k[-1]) != (num_queries, num_keys):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {num_queries} queries and {num_keys} keys with no segment of more "
            f"queries than keys, got {ends_q} and {ends_k}."
        )
