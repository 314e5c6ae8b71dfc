"""The oracle: hybrid attention written out with masks in float64. Never fast, never approximate.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

import torch
from torch import Tensor

from ..types import Pattern


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, head_is_sparse: Tensor, pattern: Pattern, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention in which each KV head of each sequence reads everything or only what `pattern` shows.

    Args:
        q: (B, H, T, D); the queries are the last T of S positions.
        k, v: (B, G, S, D).
        head_is_sparse: (B, G) bool.
        pattern: what sparse heads read.
        scale: factor of the scores.

    Returns:
        out (B, H, T, D) in q's dtype, lse (B, H, T) float32, natural logarithm. Differentiable in q, k and v.
    """
    visible = _causal(q, k)[None, None] & (
        ~head_is_sparse[:, :, None, None] | pattern.is_visible(*_positions(q, k))[None, None]
    )
    return _attend_masked(q, k, v, visible, scale)


def blend_reference(q: Tensor, k: Tensor, v: Tensor, route: Tensor, pattern: Pattern, scale: float) -> Tensor:
    """O = r * O_sparse + (1 - r) * O_full with r = route (B, G), differentiable in q, k, v and route."""
    is_sparse = torch.ones_like(route, dtype=torch.bool)
    sparse, _ = attend_reference(q, k, v, is_sparse, pattern, scale)
    full, _ = attend_reference(q, k, v, ~is_sparse, pattern, scale)
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[..., None, None].to(full.dtype)
    return weight * sparse + (1 - weight) * full


def _positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    num_queries, num_keys = q.shape[2], k.shape[2]
    keys = torch.arange(num_keys, device=q.device)
    return keys[num_keys - num_queries :, None], keys[None, :]


def _causal(q: Tensor, k: Tensor) -> Tensor:
    query_positions, key_positions = _positions(q, k)
    return key_positions <= query_positions


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    group_size = q.shape[1] // k.shape[1]
    k64, v64 = (x.double().repeat_interleave(group_size, dim=1) for x in (k, v))
    scores = q.double() @ k64.transpose(-1, -2) * scale
    scores = scores.masked_fill(~visible.repeat_interleave(group_size, dim=1), float("-inf"))
    out = scores.softmax(dim=-1) @ v64
    return out.to(q.dtype), scores.logsumexp(dim=-1).float()
