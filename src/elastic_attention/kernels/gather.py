"""Backend "cpu": hybrid attention from PyTorch's own fused kernels, on any device.

Sparse heads really skip: only the keys of their pieces are touched, as strided views, without masks or index lists.

Shape letters: N rows = (sequence, KV head) pairs, p query heads per row, T queries, S keys, D head dim, n blocks of a
piece, t queries of a block, s keys of a part.
"""

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
    (batch, num_q_heads, num_queries, width), (_, num_kv_heads, num_keys, _) = q.shape, k.shape
    rows_q = q.reshape(batch * num_kv_heads, num_q_heads // num_kv_heads, num_queries, width)
    rows_k, rows_v = (x.reshape(batch * num_kv_heads, num_keys, width) for x in (k, v))
    is_sparse = head_is_sparse.reshape(-1).tolist()
    cuts = {False: cut_causal(num_queries, num_keys), True: cut_streaming(num_queries, num_keys, config)}
    kinds = sorted(set(is_sparse))
    if len(kinds) == 1:
        out, lse = _attend_rows(rows_q, rows_k, rows_v, cuts[kinds[0]], scale)
    else:
        out, lse = q.new_empty(rows_q.shape), q.new_empty(rows_q.shape[:-1], dtype=_wide(q))
        for kind in kinds:
            rows = torch.tensor([i for i, s in enumerate(is_sparse) if s == kind], device=q.device)
            part_out, part_lse = _attend_rows(rows_q[rows], rows_k[rows], rows_v[rows], cuts[kind], scale)
            out.index_copy_(0, rows, part_out)
            lse.index_copy_(0, rows, part_lse)
    return out.view(q.shape), lse.view(q.shape[:-1]).float()


def blend_gather(q: Tensor, k: Tensor, v: Tensor, route: Tensor, config: StreamingConfig, scale: float) -> Tensor:
    """O = r * O_sparse + (1 - r) * O_full with r = route (B, G), differentiable in q, k, v and route."""
    is_sparse = torch.ones(route.shape, dtype=torch.bool)
    sparse, _ = attend_gather(q, k, v, is_sparse, config, scale)
    full, _ = attend_gather(q, k, v, ~is_sparse, config, scale)
    weight = route.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[..., None, None].to(full.dtype)
    return torch.lerp(full, sparse, weight)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, pieces: list[Piece], scale: float) -> tuple[Tensor, Tensor]:
    """q (N, p, T, D), k and v (N, S, D) -> out (N, p, T, D), lse (N, p, T); all rows follow the same pieces."""
    return _RowAttention.apply(q, k, v, pieces, scale)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: list[Piece], scale: float) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:-1], dtype=_wide(q))
        states = []
        for piece in pieces:
            blocks = _split(q, piece)
            merged: tuple[Tensor, Tensor] | None = None
            for part in piece.parts:
                part_out, part_lse, state = attend_part(
                    _query_view(blocks, part),
                    _key_view(k, piece, part),
                    _key_view(v, piece, part),
                    is_causal=part.is_causal,
                    scale=scale,
                )
                result = part_out.reshape(blocks.shape), part_lse.reshape(blocks.shape[:-1])
                merged = result if merged is None else merge_parts(*merged, *result)
                states.append(state)
            assert merged is not None
            _join(out, piece, merged[0])
            _join(lse[..., None], piece, merged[1][..., None])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.pieces, ctx.scale, ctx.states = pieces, scale, states
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        states: list[PartState] = list(ctx.states)
        for piece in ctx.pieces:
            blocks, out_blocks, grad_blocks = _split(q, piece), _split(out, piece), _split(grad, piece)
            lse_blocks = _split(lse[..., None], piece)[..., 0]
            dq_blocks = torch.zeros_like(blocks)
            for part in piece.parts:
                view = _query_view(blocks, part)
                part_dq, part_dk, part_dv = attend_part_backward(
                    _query_view(grad_blocks, part),
                    view,
                    _key_view(k, piece, part),
                    _key_view(v, piece, part),
                    _query_view(out_blocks, part),
                    lse_blocks.reshape(view.shape[:-1]),
                    states.pop(0),
                    is_causal=part.is_causal,
                    scale=ctx.scale,
                )
                dq_blocks += part_dq.reshape(blocks.shape)
                _scatter_add(dk, part_dk, part)
                _scatter_add(dv, part_dv, part)
            _join(dq, piece, dq_blocks)
        return dq, dk, dv, None, None


def _wide(x: Tensor) -> torch.dtype:
    """What kernels accumulate in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _split(x: Tensor, piece: Piece) -> Tensor:
    """(N, p, T, D) -> the piece's queries as contiguous (N, n, p, t, D)."""
    rows, heads, _, width = x.shape
    part = x[:, :, piece.start : piece.start + piece.count * piece.length]
    return part.reshape(rows, heads, piece.count, piece.length, width).transpose(1, 2).contiguous()


def _join(target: Tensor, piece: Piece, blocks: Tensor) -> None:
    """Write (N, n, p, t, D) into the piece's queries of `target` (N, p, T, D)."""
    rows, heads, _, width = target.shape
    part = target[:, :, piece.start : piece.start + piece.count * piece.length]
    part.unflatten(2, (piece.count, piece.length)).copy_(blocks.transpose(1, 2))


def _query_view(blocks: Tensor, part: Part) -> Tensor:
    """(N, n, p, t, D) as heads of queries: few heads of many queries fill the kernel's tiles best.

    A causal part needs heads of t queries; blocks that read the same keys are one head, the others a head each.
    """
    rows, count, heads, length, width = blocks.shape
    if part.is_causal:
        return blocks.view(rows, count * heads, length, width)
    return blocks.view(rows, _count_windows(count, part), -1, width)


def _key_view(x: Tensor, piece: Piece, part: Part) -> Tensor:
    """(N, S, D) -> (N, n, s, D), a view; windows of neighbouring blocks overlap, a shared one stands once."""
    rows, _, width = x.shape
    strides = (x.stride(0), part.step * x.stride(1), x.stride(1), x.stride(2))
    offset = x.storage_offset() + part.start * x.stride(1)
    return x.as_strided((rows, _count_windows(piece.count, part), part.length, width), strides, offset)


def _count_windows(count: int, part: Part) -> int:
    return count if part.step else 1


def _scatter_add(target: Tensor, grad: Tensor, part: Part) -> None:
    """Add (N, n, s, D) to the keys (N, S, D) it came from; blocks whose windows overlap are added in turn."""
    count = grad.shape[1]
    if count == 1 or part.step == 0:
        target[:, part.start : part.start + part.length] += grad.sum(1)
        return
    for first in range(0, part.length, part.step):
        columns = target[:, part.start + first : part.start + first + count * part.step]
        columns.unflatten(1, (count, part.step)).add_(grad[:, :, first : first + part.step])
