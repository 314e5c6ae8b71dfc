"""The attention and mask functions that transformers calls under the name "elastic".

Shape letters: B batch, T queries, H query heads, G KV heads, D head dim.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ..attention import blended_attention, decode_attention, hybrid_attention
from ..config import StreamingConfig
from ..errors import UnsupportedModel
from ..types import HeadRoutes
from .families import refuse_arguments
from .routing import LayerStep

IMPLEMENTATION = "elastic"


def register() -> None:
    """Make "elastic" known to transformers; idempotent."""
    AttentionInterface.register(IMPLEMENTATION, elastic_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, elastic_mask)


def elastic_mask(
    *, q_length: int, kv_length: int, q_offset: int = 0, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """The padding mask (B, S) bool, or None without padding; never T x S. Sliding layers get sdpa's own mask.

    Raises:
        UnsupportedModel: the model asks for more than causal order and padding, such as packed sequences.
        ValueError: the padding mask leaves out the cache.
    """
    if kwargs.get("local_size") is not None:
        return sdpa_mask(
            q_length=q_length, kv_length=kv_length, q_offset=q_offset, attention_mask=attention_mask, **kwargs
        )
    is_causal = kwargs.get("mask_function", causal_mask_function) is causal_mask_function
    if not is_causal and not torch.compiler.is_compiling():  # while compiling, transformers always adds packing
        raise UnsupportedModel(
            "Routed attention knows causal order and padding only; packed sequences (position_ids that start again), "
            "bidirectional parts and overlays are not implemented. Pass one sequence a row, with an attention_mask."
        )
    if attention_mask is None:
        return None
    needed = int(q_offset) + q_length
    if attention_mask.shape[1] < needed:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} columns, but the cache and the new tokens are {needed}; "
            "pass a mask over both."
        )
    mask = attention_mask[:, :kv_length].bool()
    return None if bool(mask.all()) else mask


def elastic_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    elastic: LayerStep | None = None,
    backend: str = "auto",
    pattern: StreamingConfig | None = None,
    keeps_all: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D). Layers without a step are left to sdpa."""

    def attend_densely(k: Tensor, v: Tensor) -> Tensor:
        return sdpa_attention_forward(module, query, k, v, None, dropout=dropout, scaling=scaling, **kwargs)[0]

    if elastic is None or pattern is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    refuse_arguments(kwargs | {"dropout": dropout or None})
    step, layer, tokens = elastic, elastic.layer, elastic.tokens
    is_dense = step.now.is_given_full and tokens.real is None
    has_generated = tokens.prompt_columns < tokens.num_columns
    if layer is None:
        if is_dense:
            return attend_densely(key, value), None
        out = _attend_alone(query, key, value, step.now, tokens.real, pattern, scaling, backend)
        if has_generated and keeps_all:  # decode="full": generated rows read all keys
            full = HeadRoutes(torch.zeros(step.now.values.shape, dtype=torch.bool))
            dense = _attend_alone(query, key, value, full, tokens.real, pattern, scaling, backend)
            out = torch.cat([out[:, :, : tokens.prompt_columns], dense[:, :, tokens.prompt_columns :]], dim=2)
        return out.transpose(1, 2), None
    is_new = layer.columns == 0
    layer.append(key, value, tokens.real)
    layer.store.assign(step.now)
    view = layer.store.dense_view() if is_dense and (is_new or tokens.num_columns == 1) else None
    if view is not None:
        out = attend_densely(*((key, value) if is_new else view)).transpose(1, 2)
    elif tokens.num_columns == 1 and has_generated and not layer.record_past:
        layer.store.evict()  # the new token reads exactly what is kept after it
        out = decode_attention(query, layer.store, scale=scaling)
    elif is_new and not (has_generated and keeps_all):
        out = _attend_alone(query, key, value, step.now, tokens.real, pattern, scaling, backend)
    else:
        out = _attend_store(query, step, pattern, scaling, backend, keeps_all)
    if step.after is not step.now:
        layer.store.assign(step.after)
    if not layer.record_past:
        layer.store.evict()
    return out.transpose(1, 2).contiguous(), None


def _attend_alone(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: HeadRoutes,
    real: Tensor | None,
    pattern: StreamingConfig,
    scale: float | None,
    backend: str,
) -> Tensor:
    """Queries and keys of the same tokens; each sequence's real tokens are cut out of its padding."""
    verb: Callable[..., Any] = blended_attention if routes.is_sampled else hybrid_attention
    values = routes.on(q.device)
    options = {"pattern": pattern, "scale": scale, "backend": backend}
    if real is None:
        return verb(q, k, v, values, **options)
    rows = []
    for b, columns in enumerate(mask.nonzero()[:, 0] for mask in real):
        out = torch.zeros_like(q[b : b + 1])
        if len(columns):
            parts = (x[b : b + 1].index_select(2, columns) for x in (q, k, v))
            out = out.index_copy(2, columns, verb(*parts, values[b : b + 1], **options))
        rows.append(out)
    return torch.cat(rows)


def _attend_store(
    q: Tensor, step: LayerStep, pattern: StreamingConfig, scale: float | None, backend: str, keeps_all: bool
) -> Tensor:
    """New tokens against the cache that already holds them; compacted rows follow the same rule as whole ones."""
    layer, tokens = step.layer, step.tokens
    assert layer is not None
    store, (batch, _, num_columns, width) = layer.store, q.shape
    heads = store.num_kv_heads
    rows_q = q.reshape(batch * heads, -1, num_columns, width)
    out = torch.zeros_like(rows_q)
    row_is_sparse = step.now.host().flatten()
    for group in store.groups or ():
        lengths = store.stored_lengths(group)
        is_uniform = tokens.real is None and len(set(lengths)) == 1
        members = (
            [list(range(len(group.rows)))]
            if is_uniform
            else [[i for i, row in enumerate(group.rows) if row // heads == b] for b in range(batch)]
        )
        for places in filter(None, members):
            rows, length = [group.rows[i] for i in places], lengths[places[0]]
            b = rows[0] // heads
            columns = (
                torch.arange(num_columns, device=q.device)
                if is_uniform or tokens.real is None
                else tokens.real[b].nonzero()[:, 0]
            )
            if not len(columns):
                continue
            # decode="full" reads all keys in generated rows, so the two kinds of rows are two calls.
            num_prompt = int((columns < tokens.prompt_columns).sum()) if keeps_all else len(columns)
            sparse = row_is_sparse[rows][:, None]
            picked = rows_q[rows][:, :, columns]
            k, v = (x[places][:, None, :length] for x in (group.keys, group.values))
            parts = []
            for begin, end, routes in ((0, num_prompt, sparse), (num_prompt, len(columns), torch.zeros_like(sparse))):
                if begin < end:
                    stop = length - len(columns) + end
                    part = hybrid_attention(
                        picked[:, :, begin:end],
                        k[:, :, :stop],
                        v[:, :, :stop],
                        routes,
                        pattern=pattern,
                        scale=scale,
                        backend=backend,
                    )
                    assert isinstance(part, Tensor)
                    parts.append(part)
            index = torch.tensor(rows, device=q.device)
            out[index[:, None], :, columns[None]] = torch.cat(parts, dim=2).transpose(1, 2)
    return out.view(q.shape)
