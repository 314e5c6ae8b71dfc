"""Training attention as the released code computes it, to stand beside ours in the same run.

Keys and values are repeated to the query heads; full attention and sink-and-window attention run one after the other,
each with a backward of its own; the route mixes the outputs. The full path is the FlashAttention-2 kernel inside
PyTorch, sequence by sequence. For the sparse one the released code calls a block-sparse library for the A100; PyTorch's
FlexAttention on the same blocks stands in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from elastic_attention.config import StreamingConfig
from elastic_attention.models.attention_function import IMPLEMENTATION, register
from elastic_attention.models.routing import LayerStep


def attend_twice(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    elastic: LayerStep | None = None,
    pattern: StreamingConfig | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers: query (1, H, N, D), key and value (1, G, N, D) -> (1, N, H, D)."""
    if elastic is None or pattern is None:  # the model is disabled for a moment
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    lengths = tuple(elastic.tokens.counts)
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION if query.is_cuda else SDPBackend.MATH):
        full = [scaled_dot_product_attention(*part, is_causal=True, scale=scaling) for part in parts]
    sparse = _attend_sparse(query, key, value, lengths, pattern, scaling)
    counts = torch.tensor(lengths, device=query.device)
    routes = elastic.now.values.repeat_interleave(counts, dim=0).repeat_interleave(group, dim=1)
    out = torch.lerp(torch.cat(full, dim=2), sparse, routes.T[None, :, :, None].to(query.dtype))
    return out.transpose(1, 2).contiguous(), None


def use_reference(is_on: bool) -> None:
    """Let attached models attend in this way, or in ours again."""
    if is_on:
        AttentionInterface.register(IMPLEMENTATION, attend_twice)
    else:
        register()


def _attend_sparse(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], config: StreamingConfig, scale: float | None
) -> Tensor:
    if q.is_cuda:
        return _compile_flex()(q.contiguous(), k, v, block_mask=_mask_blocks(lengths, config, q.device), scale=scale)
    places = torch.arange(q.shape[2])  # FlexAttention has no backward here
    mask = _tell_visible(lengths, config, q.device)(places, places, places[:, None], places[None])
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


@functools.cache
def _compile_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=4)
def _mask_blocks(lengths: tuple[int, ...], config: StreamingConfig, device: torch.device) -> BlockMask:
    size = sum(lengths)
    sees = _tell_visible(lengths, config, device)
    return create_block_mask(sees, None, None, size, size, device=device.type, _compile=True)


def _tell_visible(
    lengths: tuple[int, ...], config: StreamingConfig, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    count = torch.tensor(lengths, device=device)
    sequence = torch.arange(len(lengths), device=device).repeat_interleave(count)
    start = (count.cumsum(0) - count)[sequence]
    block = (torch.arange(len(sequence), device=device) - start) // config.block_size
    sinks, local = config.num_sink_tokens // config.block_size, config.local_window // config.block_size

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_near = (block[key] < sinks) | (block[key] > block[query] - local)
        return (sequence[query] == sequence[key]) & (key <= query) & is_near

    return sees
