"""The verbs of `kernels.triton.paging` and `kernels.triton.decode` in plain PyTorch: slow, for tensors on the CPU.

Shape letters: B batch, T new tokens, H query heads, G KV heads, D head dim, P pages of the pool.
"""

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..kernels.modes import STREAMING


def find_slots(positions: Tensor, is_ring: Tensor, config: StreamingConfig) -> Tensor:
    """Slots of tokens in their rows, an int tensor; STREAMING rows pin the sink and ring the window.

    Args:
        positions, is_ring: int and bool tensors of shapes that broadcast: where a token stands in its sequence, and
            whether its row is STREAMING.
    """
    sink, window = config.num_sink_tokens, config.local_window
    return torch.where(is_ring & (positions >= sink), sink + (positions - sink) % window, positions)


def compact_rows(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
) -> None:
    """As the kernel of this name."""
    batch, heads = modes.shape
    block = config.block_size
    is_ring = (modes == STREAMING)[:, :, None]
    window_start = ((lengths - 1).clamp(min=0) // block + 1) * block - config.local_window
    places = positions[:, None].expand(-1, heads, -1)
    is_recent = (places < config.num_sink_tokens) | (places >= window_start[:, None, None])
    is_kept = (places >= 0) & (~is_ring | is_recent)
    slots = find_slots(places, is_ring, config).masked_fill(~is_kept, 0).long()
    page_size = key_pages.shape[1]
    pages = table.view(batch, heads, -1).gather(2, slots // page_size).long()
    target = (pages * page_size + slots % page_size)[is_kept]
    key_pages.flatten(0, 1)[target] = keys[is_kept]
    value_pages.flatten(0, 1)[target] = values[is_kept]


def append_token(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
) -> None:
    """As the kernel of this name."""
    positions = lengths[:, None].clone()
    lengths += 1
    compact_rows(keys, values, positions, key_pages, value_pages, table, lengths, modes, config)


def decode_paged(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    *,
    workspace: None = None,
) -> Tensor:
    """As the kernel of this name, which needs a workspace."""
    batch, heads = modes.shape
    capacity = config.num_sink_tokens + config.local_window
    newest = (lengths - 1)[:, None].expand(-1, heads)
    is_turning = (modes == STREAMING) & (newest >= capacity)
    newest_slot = find_slots(newest, is_turning, config)
    block_end = (newest_slot // config.block_size + 1) * config.block_size
    stored = torch.where(is_turning, capacity, newest + 1)
    slots = torch.arange(int(stored.max()), device=q.device)
    is_gone = is_turning[..., None] & (slots > newest_slot[..., None]) & (slots < block_end[..., None])
    is_held = (slots < stored[..., None]) & ~is_gone
    page_size = key_pages.shape[1]
    places = torch.where(is_held, slots, 0)
    pages = table.view(batch, heads, -1).gather(2, places // page_size).long()
    index = pages * page_size + places % page_size
    k, v = (x.flatten(0, 1)[index].masked_fill(~is_held[..., None], 0) for x in (key_pages, value_pages))
    mask = is_held.repeat_interleave(q.shape[1] // heads, 1)[:, :, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
