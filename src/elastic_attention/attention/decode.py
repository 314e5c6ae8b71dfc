"""Decoding: one new token a sequence over a ragged cache."""

from typing import Protocol

from torch import Tensor

from .layout import settle_scale


class DecodingCache(Protocol):
    """A cache layer, `ElasticCache` or `PagedCache`."""

    def attend_token(self, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest token of each sequence over what its rows store."""
        ...


def decode_attention(q: Tensor, cache_layer: DecodingCache, *, scale: float | None = None) -> Tensor:
    """Attention of one new token a sequence over the ragged cache that already holds it.

    Args:
        q: (B, H, 1, D), of the cache's dtype.
        cache_layer: the layer's cache; every stored token of a row is read.
        scale: factor of the scores, above 0; default D ** -0.5.

    Returns:
        (B, H, 1, D), of q's dtype.

    Raises:
        ValueError: q holds several tokens a sequence or is not contiguous in its last dimension; the scale is not
            positive.
    """
    if q.ndim != 4 or q.shape[2] != 1 or q.stride(-1) != 1:
        raise ValueError(
            f"q must be (B, H, 1, D) with a contiguous last dimension, got {tuple(q.shape)} with strides {q.stride()}; "
            "hybrid_attention takes several tokens."
        )
    return cache_layer.attend_token(q, settle_scale(scale, q.shape[-1]))
