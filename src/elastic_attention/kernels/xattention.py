"""XAttention's scoring and selection in plain PyTorch, on any device; in float64 it is the oracle of the kernels.

Order of choice, for every query block: block 0 and the diagonal first, then by mass, largest first, and by index,
smallest first, where masses are equal. A block is kept as long as those before it hold less than the threshold's
share of the row's mass (block 0 and the diagonal always). With a forced density, every block counts as one.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, M query blocks, N key blocks,
s stride, b block size.
"""

import torch
from torch import Tensor

from ..config import XAttentionConfig
from .block_lists import BlockLists, count_rows, find_first_blocks, pack_mask


def score_blocks(
    q: Tensor,
    k: Tensor,
    config: XAttentionConfig,
    scale: float,
    *,
    dense_rows: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Score mass of every block: softmax over strided keys of the antidiagonal sums, added up inside of blocks.

    The strided score of (x, y) is sum over i < s of Q[s x + s - 1 - i] . K[s y + i], times scale / s, for y <= x.
    Tokens that a stride lacks count as zero; a strided row without any voting query has no mass. In the stride where
    `dense_rows` begin, their keys count as zero too, so that a prompt never sees its response.

    Args:
        q: (B, H, T, D); the queries are the last T of S positions.
        k: (B, G, S, D), G divides H.
        config: block and stride.
        scale: factor of the attention scores, usually D ** -0.5.
        dense_rows: (B, 2) int, positions [start, stop) of queries that read everything and do not vote.
        dtype: of the arithmetic and of the result.

    Returns:
        mass (B, H, M, N), rows are the query blocks from (S - T) // b on, and voters (B, M) bool: whether any query
        of the block votes.
    """
    num_queries, num_keys, stride = q.shape[2], k.shape[2], config.stride
    num_rows, num_blocks = count_rows(num_queries, num_keys, config.block_size)
    size = num_blocks * config.block_size
    position = torch.arange(num_keys, device=q.device)
    votes = torch.ones(len(q), num_queries, dtype=torch.bool, device=q.device)
    if dense_rows is not None:
        start, stop = dense_rows[:, :1], dense_rows[:, 1:]
        votes = ((position < start) | (position >= stop))[:, num_keys - num_queries :]
        is_hidden = (position >= start) & (position < stop) & (position // stride == start // stride)
        k = k.masked_fill(is_hidden[:, None, :, None], 0.0)
    front, back = (num_keys - num_queries), size - num_keys
    wide_q = (q * votes[:, None, :, None]).to(dtype)
    wide_q = torch.nn.functional.pad(wide_q, (0, 0, front, back)).unflatten(2, (-1, stride)).flip(3).flatten(3)
    wide_k = torch.nn.functional.pad(k.to(dtype), (0, 0, 0, back)).unflatten(2, (-1, stride)).flatten(3)
    first = (num_blocks - num_rows) * config.block_size // stride
    wide_q = wide_q[:, :, first:]
    wide_k = wide_k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = wide_q @ wide_k.transpose(2, 3) * (scale / stride)
    strided = torch.arange(size // stride, device=q.device)
    scores = scores.masked_fill(strided > strided[first:, None], float("-inf"))
    is_voter = torch.nn.functional.pad(votes, (front, back)).unflatten(1, (-1, stride)).any(2)[:, first:]
    shares = scores.softmax(3) * is_voter[:, None, :, None]
    slots = config.block_size // stride
    mass = shares.unflatten(3, (-1, slots)).sum(4).unflatten(2, (-1, slots)).sum(3)
    return mass, is_voter.unflatten(1, (-1, slots)).any(2)


def select_blocks(mass: Tensor, voters: Tensor, config: XAttentionConfig) -> Tensor:
    """The key blocks that each query block reads.

    Args:
        mass, voters: as `score_blocks` returns them.
        config: threshold or density.

    Returns:
        (B, H, M, N) bool. A query block without voters reads every block up to its own.
    """
    num_rows, num_blocks = mass.shape[2:]
    blocks = torch.arange(num_blocks, device=mass.device)
    last = blocks[num_blocks - num_rows :, None]
    is_causal, is_forced = blocks <= last, (blocks == 0) | (blocks == last)
    worth = is_causal.to(mass.dtype).expand_as(mass) if config.density is not None else mass
    share = config.threshold if config.density is None else config.density
    # Masses never exceed 1 per strided row: the forced blocks come first, those ahead of the diagonal last.
    rank = mass.masked_fill(is_forced, float("inf")).masked_fill(~is_causal, -1.0)
    order = rank.argsort(dim=3, descending=True, stable=True)
    ordered = worth.gather(3, order)
    before = ordered.cumsum(3) - ordered
    is_kept = torch.zeros_like(mass, dtype=torch.bool).scatter(3, order, before < share * worth.sum(3, keepdim=True))
    return (is_kept | is_forced | ~voters[:, None, :, None]) & is_causal


def choose_blocks(
    q: Tensor,
    k: Tensor,
    config: XAttentionConfig,
    scale: float,
    *,
    dense_rows: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> BlockLists:
    """Score, select and pack for all heads of a plain batch; arguments as in `score_blocks`."""
    mask = select_blocks(*score_blocks(q, k, config, scale, dense_rows=dense_rows, dtype=dtype), config)
    first = find_first_blocks(len(q), q.shape[2], k.shape[2], config.block_size, None)
    return pack_mask(mask, first.to(q.device), config.block_size)
