"""XAttention and triangle heads of backend "cpu": masked attention in plain PyTorch, a stretch of queries at a time.

Nothing is skipped; the GPU kernels do that. Differentiable in q, k and v.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim.
"""

import torch
from torch import Tensor

from ..config import StreamingConfig
from .block_lists import BlockLists
from .reference import ChooseKeys, read_lists, show_keys, unpack_lists
from .spans import Spans, list_spans

_STRETCH = 512  # queries whose scores are in memory at once


def attend_masked(
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
    """Arguments and results as in `kernels.reference.attend_modes`; scores in float32 at least."""
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float32)
    listed = unpack_lists(lists, len(modes), q, k, spans)
    for row, element, queries, keys in list_spans(spans, q, k):
        x, y, z = q[element, :, queries], k[element, :, keys], v[element, :, keys]
        offset = y.shape[1] - x.shape[1]
        for begin in range(0, x.shape[1], _STRETCH):
            end = min(begin + _STRETCH, x.shape[1])
            some, seen = x[:, begin:end], slice(0, offset + end)
            blocks = None
            if lists is not None and listed is not None:
                skipped = (offset + begin) // lists.block_size - offset // lists.block_size
                blocks = read_lists(listed[row][:, skipped:], lists.block_size, some, y[:, seen])
            elif choose_keys is not None:
                blocks = choose_keys(some, y[:, seen], y.shape[1])
            dense = None if dense_rows is None else dense_rows[row]
            visible = show_keys(some, y[:, seen], modes[row], config, blocks, dense)
            place = slice(queries.start + begin, queries.start + end)
            out[element, :, place], lse[element, :, place] = _attend(some, y[:, seen], z[:, seen], visible, scale)
    return out, lse


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q (H, T, D), k and v (G, S, D), visible (H, T, S) -> out (H, T, D), lse (H, T)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(wide).unflatten(0, (len(k), -1))
    scores = torch.einsum("gptd,gsd->gpts", grouped, k.to(wide)).flatten(0, 1) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1).unflatten(0, (len(k), -1))
    out = torch.einsum("gpts,gsd->gptd", weights, v.to(wide)).flatten(0, 1)
    return out.to(q.dtype), scores.detach().logsumexp(-1).float()
