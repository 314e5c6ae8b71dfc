"""One dense attention over a part of the keys, with the statistics that let parts be merged.

Softmax over a union of key sets is a weighted mean of the softmaxes over the sets, with weights exp(lse). And the
gradient of the union through one part is the ordinary attention gradient of that part evaluated with the merged
output and the merged lse. PyTorch's own fused kernels do both; this file picks the one of the device.

Shape letters: b batch, h query heads, g key heads (g divides h), t queries, s keys, d head dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(slots=True)
class PartState:
    """What the backward of one part needs besides its inputs."""

    extras: tuple[Any, ...] = ()


def attend_part(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float) -> tuple[Tensor, Tensor, PartState]:
    """Dense or square causal attention.

    Args:
        q: (b, h, t, d); k, v: (b, g, s, d), any strides with a contiguous last dimension. Causal needs t = s.

    Returns:
        out (b, h, t, d), lse (b, h, t) float32 natural logarithm, state for `attend_part_backward`.
    """
    if q.device.type == "cpu":
        k, v = _expand(k, q), _expand(v, q)
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)
        return out, lse, PartState()
    if q.dtype == torch.float32:
        k, v = _expand(k, q), _expand(v, q)
        out, lse, *extras = _aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        return out, lse[..., : q.shape[2]], PartState((lse.shape[-1], *extras))
    out, lse, cq, ck, mq, mk, rng, unused, _ = _aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, is_causal, False, scale=scale
    )
    return out, lse, PartState((cq, ck, mq, mk, rng, unused))


def attend_part_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    state: PartState,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one part; `out` and `lse` are the merged ones of all parts.

    Returns:
        dq (b, h, t, d), dk and dv (b, g, s, d).
    """
    num_key_heads = k.shape[1]
    if q.device.type == "cpu":
        k, v = _expand(k, q), _expand(v, q)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, is_causal, scale=scale
        )
    elif q.dtype == torch.float32:
        k, v = _expand(k, q), _expand(v, q)
        width, seed, offset = state.extras
        padded = torch.full((*lse.shape[:-1], width), torch.inf, device=lse.device)
        padded[..., : lse.shape[-1]] = lse
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, None, out, padded, seed, offset, 0.0, (True, True, True, False), is_causal, scale=scale
        )
    else:
        cq, ck, mq, mk, rng, unused = state.extras
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse.contiguous(), cq, ck, mq, mk, 0.0, is_causal, rng, unused, scale=scale
        )
    return dq, _reduce(dk, num_key_heads), _reduce(dv, num_key_heads)


def merge_parts(results: list[tuple[Tensor, Tensor]], out: Tensor, lse: Tensor) -> None:
    """Merge results over disjoint keys, (..., t, d) and (..., t), into `out` and `lse`; uses the results up."""
    *before, (last, last_lse) = results
    if not before:
        out.copy_(last)
        lse.copy_(last_lse)
        return
    merged, merged_lse = before[0]
    for other, other_lse in before[1:]:
        merged.lerp_(other, _weigh(merged_lse, other_lse, merged))
        merged_lse = torch.logaddexp(merged_lse, other_lse)
    torch.lerp(merged, last, _weigh(merged_lse, last_lse, merged), out=out)
    torch.logaddexp(merged_lse, last_lse, out=lse)


def _weigh(lse: Tensor, other_lse: Tensor, like: Tensor) -> Tensor:
    return torch.sigmoid(other_lse - lse)[..., None].to(like.dtype)


def _expand(x: Tensor, q: Tensor) -> Tensor:
    """Repeat key heads to the query heads without copying where strides allow it."""
    b, g, s, d = x.shape
    if g == q.shape[1]:
        return x
    return x[:, :, None].expand(b, g, q.shape[1] // g, s, d).reshape(b, q.shape[1], s, d)


def _reduce(grad: Tensor, num_key_heads: int) -> Tensor:
    b, h, s, d = grad.shape
    return grad if h == num_key_heads else grad.view(b, num_key_heads, h // num_key_heads, s, d).sum(2)
