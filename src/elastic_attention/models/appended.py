"""Several new tokens against a cache that already holds them: chunks, later turns, candidates of assisted decoding.

Every row of the cache, a (sequence, KV head), is one sequence of a packed call, because rows that dropped tokens are
shorter than others. A row whose gap behind the sink is closed follows the same block rule as a whole one.

Shape letters: B batch, T queries, H query heads, G KV heads, D head dim, R = B * G rows, p = H / G.
"""

import dataclasses

import torch
from torch import Tensor

from ..attention import hybrid_attention
from ..config import SparsePattern, XAttentionConfig
from ..kernels.spans import Spans
from ..types import stage
from .routing import LayerStep
from .tokens import Tokens


def attend_appended(
    q: Tensor,
    step: LayerStep,
    *,
    pattern: SparsePattern,
    full_pattern: str | XAttentionConfig,
    scale: float | None,
    backend: str,
    keeps_all: bool,
) -> Tensor:
    """q (B, H, T, D) of tokens that the layer's store holds already -> (B, H, T, D); padded rows are 0."""
    layer, tokens = step.layer, step.tokens
    assert layer is not None
    batch, num_q_heads, num_columns, width = q.shape
    heads = layer.store.num_kv_heads
    rows = layer.store.gather()
    if tokens.real is not None and tokens.spans is None:  # rows with holes: real tokens to the front
        order = torch.argsort((~tokens.real).to(torch.uint8), dim=1, stable=True)
        q = q.gather(2, order[:, None, :, None].expand_as(q))
    packed = q.reshape(batch * heads, -1, num_columns, width).transpose(0, 1).flatten(1, 2)[None]
    every = Spans(
        query_start=_find_query_starts(tokens, heads, q.device),
        query_length=_by_row(tokens.counts, heads, q.device),
        key_start=rows.starts,
        key_length=rows.lengths,
        is_packed=True,
        max_query_length=num_columns,
    )
    sparse = step.now.on(q.device).reshape(-1, 1)
    parts = [(every, sparse, full_pattern)]
    # Generated rows read by another rule (all keys under decode="full", no block lists): a call of their own.
    if tokens.prompt_columns < num_columns and (keeps_all or full_pattern != "full"):
        prompt = _by_row(tokens.prompt_counts, heads, q.device)
        generated = every.query_length - prompt
        front = dataclasses.replace(every, query_length=prompt, key_length=every.key_length - generated)
        back = dataclasses.replace(every, query_start=every.query_start + prompt, query_length=generated)
        parts = [(front, sparse, full_pattern)] if tokens.prompt_columns else []
        parts.append((back, torch.zeros_like(sparse) if keeps_all else sparse, "full"))
    total = torch.zeros_like(packed)
    for spans, routes, full in parts:
        out = hybrid_attention(
            packed,
            rows.keys[None, None],
            rows.values[None, None],
            routes,
            pattern=pattern,
            full_pattern=full,
            spans=spans,
            scale=scale,
            backend=backend,
        )
        assert isinstance(out, Tensor)
        total += out
    result = total[0].unflatten(1, (batch * heads, num_columns)).transpose(0, 1).reshape(q.shape)
    if tokens.real is not None and tokens.spans is None:
        result = torch.zeros_like(result).scatter(2, order[:, None, :, None].expand_as(result), result)
    return result


def _by_row(values: list[int], heads: int, device: torch.device) -> Tensor:
    return stage(torch.tensor(values, dtype=torch.int32).repeat_interleave(heads), device)


def _find_query_starts(tokens: Tokens, heads: int, device: torch.device) -> Tensor:
    rows = len(tokens.counts) * heads
    starts = stage(torch.arange(rows, dtype=torch.int32) * tokens.num_columns, device)
    return starts if tokens.spans is None else starts + tokens.spans.query_start.repeat_interleave(heads)
