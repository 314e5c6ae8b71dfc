"""The oracle: hybrid attention written out with masks in float64. Never fast, never approximate.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..types import Pattern
from .block_lists import BlockLists, find_first_blocks
from .modes import FULL, LISTS, STREAMING, TRIANGLE
from .spans import Spans, list_spans

ChooseKeys = Callable[[Tensor, Tensor, int], Tensor]
"""(q (H, T, D), k (G, S, D), keys of the whole sequence) -> (H, T, S) bool: what the queries of LISTS heads read.

Stands in for block lists where queries choose one by one. The queries are the last T of S positions."""


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
    return _attend_masked(q, k, v, visible.repeat_interleave(q.shape[1] // k.shape[1], dim=1), scale)


def blend_reference(q: Tensor, k: Tensor, v: Tensor, route: Tensor, pattern: Pattern, scale: float) -> Tensor:
    """O = r * O_sparse + (1 - r) * O_full with r = route (B, G), differentiable in q, k, v and route."""
    is_sparse = torch.ones_like(route, dtype=torch.bool)
    sparse, _ = attend_reference(q, k, v, is_sparse, pattern, scale)
    full, _ = attend_reference(q, k, v, ~is_sparse, pattern, scale)
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[..., None, None].to(full.dtype)
    return weight * sparse + (1 - weight) * full


def attend_modes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    scale: float,
    *,
    spans: Spans | None = None,
    lists: BlockLists | None = None,
    dense_rows: Tensor | None = None,
    choose_keys: ChooseKeys | None = None,
) -> tuple[Tensor, Tensor]:
    """What the GPU kernels compute, for every mode and every way to lay out a batch. Reads all of it on the host.

    Args:
        q: (B, H, T, D); k, v: (B, G, S, D). Packed: B = 1, the sequences follow each other.
        modes: (sequences, G) int32, the numbers of `kernels.modes`.
        config: what STREAMING and TRIANGLE heads read.
        scale: factor of the scores.
        spans: where the sequences lie; None = every element holds its last T of S positions.
        lists: what LISTS heads read, or
        choose_keys: the same, query by query.
        dense_rows: (sequences, 2) int, positions [start, stop) of queries of TRIANGLE and LISTS heads that read
            every key up to themselves.

    Returns:
        out (B, H, T, D) in q's dtype, zero in rows outside of the spans; lse (B, H, T) float32, -inf there.
    """
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float32)
    listed = unpack_lists(lists, len(modes), q, k, spans)
    for row, element, queries, keys in list_spans(spans, q, k):
        x, y, z = q[element, :, queries], k[element, :, keys], v[element, :, keys]
        blocks = None if lists is None or listed is None else read_lists(listed[row], lists.block_size, x, y)
        blocks = blocks if choose_keys is None else choose_keys(x, y, y.shape[1])
        dense = None if dense_rows is None else dense_rows[row]
        visible = show_keys(x, y, modes[row], config, blocks, dense)
        one_out, one_lse = _attend_masked(x[None], y[None], z[None], visible[None], scale)
        out[element, :, queries], lse[element, :, queries] = one_out[0], one_lse[0]
    return out, lse


def unpack_lists(lists: BlockLists | None, sequences: int, q: Tensor, k: Tensor, spans: Spans | None) -> Tensor | None:
    """The lists of all sequences as (sequences, H, M, N) bool of blocks; None without lists."""
    if lists is None:
        return None
    first = find_first_blocks(sequences, q.shape[2], k.shape[2], lists.block_size, spans).to(q.device)
    return lists.to_mask(first, -(-k.shape[2] // lists.block_size))


def read_lists(listed: Tensor, block: int, q: Tensor, k: Tensor) -> Tensor:
    """(H, M, N) bool of blocks as (H, T, S) bool of tokens."""
    query_positions, key_positions = _positions(q[None], k[None])
    rows = query_positions[:, 0] // block
    return listed[:, rows - rows[0]][:, :, key_positions[0] // block]


def show_keys(
    q: Tensor, k: Tensor, modes: Tensor, config: StreamingConfig, listed: Tensor | None, dense: Tensor | None
) -> Tensor:
    """(H, T, S) bool for one sequence: which key each query of each head reads."""
    block, (query, key) = config.block_size, _positions(q[None], k[None])
    streamed = (key < config.num_sink_tokens) | (key // block > query // block - config.local_window // block)
    is_dense = torch.zeros_like(query, dtype=torch.bool)
    if dense is not None:
        is_dense = (query >= dense[0]) & (query < dense[1])
    every = torch.ones_like(streamed)
    heads = []
    for head, mode in enumerate(modes.repeat_interleave(len(q) // len(k)).tolist()):
        shown = {FULL: every, STREAMING: streamed, TRIANGLE: streamed | is_dense}.get(mode)
        if mode == LISTS and listed is not None:
            shown = listed[head] | is_dense
        if shown is None:
            raise ValueError(f"mode {mode} is unknown or misses its lists; use the numbers of kernels.modes.")
        heads.append(shown & (key <= query))
    return torch.stack(heads)


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
    scores = scores.masked_fill(~visible, float("-inf"))
    out = scores.softmax(dim=-1) @ v64
    return out.to(q.dtype), scores.logsumexp(dim=-1).float()
