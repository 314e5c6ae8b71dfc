"""Decoding: one new token a sequence over a ragged cache.

Shape letters: B batch, H query heads, G KV heads, D head dim.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..cache import ElasticCache, RowGroup


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
