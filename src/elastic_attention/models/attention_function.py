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
from ..config import SparsePattern, XAttentionConfig
from ..types import HeadRoutes
from .appended import attend_appended
from .families import refuse_arguments
from .packing import number_sequences
from .routing import LayerStep
from .tokens import Tokens

IMPLEMENTATION = "elastic"


def register() -> None:
    """Make "elastic" known to transformers; idempotent."""
    AttentionInterface.register(IMPLEMENTATION, elastic_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, elastic_mask)


def elastic_mask(
    *, q_length: int, kv_length: int, q_offset: int = 0, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """The padding mask (B, S) bool, None without padding; never T x S. Sliding layers get sdpa's own mask.

    Of packed sequences, whose position_ids start again: the number of each token's sequence, (1, N) int32.

    Raises:
        UnsupportedModel: the model asks for more than causal order, padding and packing.
        ValueError: the padding mask leaves out the cache, or a batch of several rows is packed.
    """
    if kwargs.get("local_size") is not None:
        return sdpa_mask(
            q_length=q_length, kv_length=kv_length, q_offset=q_offset, attention_mask=attention_mask, **kwargs
        )
    mask_function = kwargs.get("mask_function", causal_mask_function)
    if mask_function is not causal_mask_function and not torch.compiler.is_compiling():
        # While compiling, transformers always adds packing.
        if (batch := kwargs.get("batch_size", 1)) != 1:
            raise ValueError(f"packed sequences come in one row, this batch has {batch}; join the rows into one.")
        return number_sequences(mask_function, length=q_length, device=torch.device(kwargs["device"]))
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
    pattern: SparsePattern | None = None,
    full_pattern: str | XAttentionConfig = "full",
    keeps_all: bool = False,
    fast_gradients: bool = False,
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
    is_dense = step.now.is_given_full and not tokens.has_spans and full_pattern == "full"
    has_generated = tokens.prompt_columns < tokens.num_columns

    def attend_alone(routes: HeadRoutes, full: str | XAttentionConfig) -> Tensor:
        options: dict[str, Any] = {"pattern": pattern, "full_pattern": full, "scale": scaling, "backend": backend}
        options |= {"prompt_lengths": step.prompt_lengths}
        options |= {"fast_gradients": fast_gradients} if routes.is_sampled else {}
        if tokens.exchange is None:
            return _attend_alone(query, key, value, routes, tokens, options)
        heads = tokens.exchange.deal(routes.values)
        own = HeadRoutes(heads.routes)
        return heads.to_tokens(_attend_alone(*heads.to_heads(query, key, value), own, tokens, options))

    if layer is None:
        if is_dense:
            return attend_densely(key, value), None
        out = attend_alone(step.now, full_pattern)
        if has_generated and keeps_all:  # decode="full": generated rows read all keys
            dense = attend_alone(HeadRoutes(torch.zeros(step.now.values.shape, dtype=torch.bool)), "full")
            out = torch.cat([out[:, :, : tokens.prompt_columns], dense[:, :, tokens.prompt_columns :]], dim=2)
        return out.transpose(1, 2), None
    is_new = layer.columns == 0
    layer.append(key, value, tokens.real, tokens.counts)
    layer.store.assign(step.now)
    view = layer.store.dense_view() if is_dense and not is_new and tokens.num_columns == 1 else None
    if is_dense and is_new:
        out = attend_densely(key, value).transpose(1, 2)
    elif view is not None:
        out = attend_densely(*view).transpose(1, 2)
    elif tokens.num_columns == 1 and has_generated and not layer.record_past:
        layer.store.evict()  # the new token reads exactly what is kept after it
        out = decode_attention(query, layer.store, scale=scaling)
    elif is_new and not (has_generated and keeps_all):
        out = attend_alone(step.now, full_pattern)
    else:
        out = attend_appended(
            query, step, pattern=pattern, full_pattern=full_pattern, scale=scaling, backend=backend, keeps_all=keeps_all
        )
    if step.after is not step.now:
        layer.store.assign(step.after)
    if not layer.record_past:
        layer.store.evict()
    return out.transpose(1, 2).contiguous(), None


def _attend_alone(
    q: Tensor, k: Tensor, v: Tensor, routes: HeadRoutes, tokens: Tokens, options: dict[str, Any]
) -> Tensor:
    """Queries and keys of the same tokens; each sequence's real tokens are cut out of its padding."""
    verb: Callable[..., Any] = blended_attention if routes.is_sampled else hybrid_attention
    values = routes.on(q.device)
    if tokens.real is None or tokens.spans is not None:
        return verb(q, k, v, values, spans=tokens.spans, **options)
    lengths = options.pop("prompt_lengths")
    rows = []
    for b, columns in enumerate(mask.nonzero()[:, 0] for mask in tokens.real):
        out = torch.zeros_like(q[b : b + 1])
        if len(columns):
            parts = (x[b : b + 1].index_select(2, columns) for x in (q, k, v))
            ends = None if lengths is None else lengths[b : b + 1]
            out = out.index_copy(2, columns, verb(*parts, values[b : b + 1], prompt_lengths=ends, **options))
        rows.append(out)
    return torch.cat(rows)
