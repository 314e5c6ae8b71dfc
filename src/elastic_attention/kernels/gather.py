"""Backend "cpu": hybrid attention from PyTorch's own fused kernels, on any device.

Sparse heads really skip: only the keys of their pieces are touched, as strided views, without masks or index lists.

Shape letters: B batch, H query heads, G KV heads, p = H / G query heads of a KV head, T queries, S keys, D head dim,
n blocks of a piece, t queries of a block, s keys of a part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..config import StreamingConfig
from .partial import PartState, attend_part, attend_part_backward, merge_parts
from .pieces import Part, Piece, cut_causal, cut_streaming


def attend_gather(
    q: Tensor, k: Tensor, v: Tensor, head_is_sparse: Tensor, config: StreamingConfig, scale: float
) -> tuple[Tensor, Tensor]:
    """Hybrid attention; arguments and results as in `kernels.reference.attend_reference`.

    Differentiable in q, k and v. `head_is_sparse` is read on the host.
    """
    if not q.numel():  # the fused kernels divide by the number of queries
        return torch.zeros_like(q), q.new_zeros(q.shape[:-1], dtype=torch.float32)
    cuts = cut_causal(q.shape[2], k.shape[2]), cut_streaming(q.shape[2], k.shape[2], config)
    pieces = [[cuts[is_sparse] for is_sparse in row] for row in head_is_sparse.tolist()]
    out, lse = _PiecewiseAttention.apply(q, k, v, pieces, scale)
    return out, lse.float()


def blend_gather(q: Tensor, k: Tensor, v: Tensor, route: Tensor, config: StreamingConfig, scale: float) -> Tensor:
    """O = r * O_sparse + (1 - r) * O_full with r = route (B, G), differentiable in q, k, v and route."""
    is_sparse = torch.ones(route.shape, dtype=torch.bool)
    sparse, _ = attend_gather(q, k, v, is_sparse, config, scale)
    full, _ = attend_gather(q, k, v, ~is_sparse, config, scale)
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[..., None, None].to(full.dtype)
    return torch.lerp(full, sparse, weight)


class _PiecewiseAttention(torch.autograd.Function):
    """One KV head of one sequence after the other: its buffers stay in the processor's cache and are used again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: list[list[list[Piece]]], scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:-1], dtype=_wide(q))
        group_size, states = q.shape[1] // k.shape[1], []
        for b, heads, g in _walk(k, group_size):
            for piece in pieces[b][g]:
                states += _attend_piece(q[b, heads], k[b, g], v[b, g], piece, scale, out[b, heads], lse[b, heads])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.pieces, ctx.scale, ctx.states = pieces, scale, states
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        states: list[PartState] = list(ctx.states)
        for b, heads, g in _walk(k, q.shape[1] // k.shape[1]):
            for piece in ctx.pieces[b][g]:
                blocks, out_blocks, grad_blocks = (_split(x[b, heads], piece).contiguous() for x in (q, out, grad))
                lse_blocks = _split(lse[b, heads, :, None], piece)[..., 0]
                dq_blocks = torch.zeros_like(blocks)
                for part in piece.parts:
                    view = _query_view(blocks, part)
                    part_dq, part_dk, part_dv = attend_part_backward(
                        _query_view(grad_blocks, part),
                        view,
                        _key_view(k[b, g], piece, part),
                        _key_view(v[b, g], piece, part),
                        _query_view(out_blocks, part),
                        lse_blocks.reshape(view.shape[:-1]),
                        states.pop(0),
                        is_causal=part.is_causal,
                        scale=ctx.scale,
                    )
                    dq_blocks += part_dq.reshape(blocks.shape)
                    _scatter_add(dk[b, g], part_dk, part)
                    _scatter_add(dv[b, g], part_dv, part)
                _split(dq[b, heads], piece).copy_(dq_blocks)
        return dq, dk, dv, None, None


def _walk(k: Tensor, group_size: int) -> Iterator[tuple[int, slice, int]]:
    """Every KV head of every sequence: the sequence, its query heads, the KV head."""
    for b in range(k.shape[0]):
        for g in range(k.shape[1]):
            yield b, slice(g * group_size, (g + 1) * group_size), g


def _attend_piece(
    q: Tensor, k: Tensor, v: Tensor, piece: Piece, scale: float, out: Tensor, lse: Tensor
) -> list[PartState]:
    """q (p, T, D), k and v (S, D) -> the piece's queries of out (p, T, D) and lse (p, T)."""
    blocks = _split(q, piece).contiguous()
    results, states = [], []
    for part in piece.parts:
        part_out, part_lse, state = attend_part(
            _query_view(blocks, part),
            _key_view(k, piece, part),
            _key_view(v, piece, part),
            is_causal=part.is_causal,
            scale=scale,
        )
        results.append((part_out.reshape(blocks.shape), part_lse.reshape(blocks.shape[:-1])))
        states.append(state)
    merge_parts(results, _split(out, piece), _split(lse[..., None], piece)[..., 0])
    return states


def _wide(x: Tensor) -> torch.dtype:
    """What kernels accumulate in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _split(x: Tensor, piece: Piece) -> Tensor:
    """(p, T, D) -> the piece's queries (n, p, t, D), a view."""
    part = x[:, piece.start : piece.start + piece.count * piece.length]
    return part.unflatten(1, (piece.count, piece.length)).transpose(0, 1)


def _query_view(blocks: Tensor, part: Part) -> Tensor:
    """(n, p, t, D) as batch, heads, queries: few heads of many queries fill the kernel's tiles best.

    A causal part needs heads of t queries; blocks that read the same keys are one head, the others a head each.
    """
    if part.is_causal:
        return blocks
    count, _, _, width = blocks.shape
    return blocks.view(_count_windows(count, part), 1, -1, width)


def _key_view(x: Tensor, piece: Piece, part: Part) -> Tensor:
    """(S, D) -> (n, 1, s, D), a view; windows of neighbouring blocks overlap, a shared one stands once."""
    strides = (part.step * x.stride(0), 0, x.stride(0), x.stride(1))
    offset = x.storage_offset() + part.start * x.stride(0)
    return x.as_strided((_count_windows(piece.count, part), 1, part.length, x.shape[1]), strides, offset)


def _count_windows(count: int, part: Part) -> int:
    return count if part.step else 1


def _scatter_add(target: Tensor, grad: Tensor, part: Part) -> None:
    """Add (n, 1, s, D) to the keys (S, D) it came from; blocks whose windows overlap are added in turn."""
    count = len(grad)
    if count == 1:
        target[part.start : part.start + part.length] += grad[0, 0]
        return
    for first in range(0, part.length, part.step):
        rows = target[part.start + first : part.start + first + count * part.step]
        rows.unflatten(0, (count, part.step)).add_(grad[:, 0, first : first + part.step])
