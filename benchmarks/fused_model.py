"""Norms, rotations and gates of a transformers model as one kernel each, for dense and elastic runs alike.

A serving engine has them fused; as transformers has them, a decode step of an 8B model is half small kernels.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


def fuse_elementwise(model: Any) -> None:
    """Swap RMSNorm, RoPE and the gate of the MLP for fused kernels, in this process; the weights stay as they are.

    Raises:
        ValueError: the model is not of the kind that this knows: RMSNorm, half-rotated RoPE, a SiLU gate.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_normalize, module)
        if type(module).__name__.endswith("MLP"):
            if not isinstance(module.act_fn, nn.SiLU) and type(module.act_fn).__name__ != "SiLUActivation":
                raise ValueError(f"{type(module).__name__} has no SiLU gate but {type(module.act_fn).__name__}")
            module.forward = partial(_feed_forward, module, _merge_weights(module.gate_proj, module.up_proj))
    home = sys.modules[type(model).__module__]
    if not hasattr(home, "apply_rotary_pos_emb"):
        raise ValueError(f"{home.__name__} has no apply_rotary_pos_emb")
    home.apply_rotary_pos_emb = rotate


def _normalize(module: Any, hidden_states: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(hidden_states, module.weight.shape, module.weight, eps=module.variance_epsilon)


def _merge_weights(first: Any, second: Any) -> Tensor:
    """The weights of two linear layers as one matrix; theirs become views of it."""
    if first.bias is not None or second.bias is not None:
        raise ValueError("the fused gate knows projections without a bias only")
    merged = torch.cat([first.weight.data, second.weight.data])
    first.weight.data, second.weight.data = merged[: len(first.weight)], merged[len(first.weight) :]
    return merged


def _feed_forward(module: Any, merged: Tensor, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(gate(torch.nn.functional.linear(x, merged)))
    return out


def gate(x: Tensor) -> Tensor:
    """silu(first half) * second half of the last dimension, in one launch; x is contiguous."""
    width, block = x.shape[-1] // 2, 1024
    out = x.new_empty(*x.shape[:-1], width)
    _gate[(out.numel() // width, triton.cdiv(width, block))](x, out, width, BLOCK=block, num_warps=4)
    return out


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """RoPE of q (B, H, T, D) and k (B, G, T, D) with cos and sin (B or 1, T, D) whose halves are equal; one launch.

    The results have the strides of q and k.
    """
    if unsqueeze_dim != 1 or q.shape[-1] != cos.shape[-1]:
        raise ValueError("the fused rotation knows q (B, H, T, D) and whole rotations only")
    batch, num_q_heads, num_tokens, head_dim = q.shape
    outs = torch.empty_like(q), torch.empty_like(k)
    _rotate[(batch * num_tokens,)](
        q, k, *outs, cos, sin, num_tokens,
        *q.stride()[:3], *k.stride()[:3], *outs[0].stride()[:3], *outs[1].stride()[:3],
        cos.stride(0) if len(cos) > 1 else 0, cos.stride(1), sin.stride(0) if len(sin) > 1 else 0, sin.stride(1),
        Q_HEADS=num_q_heads, KV_HEADS=k.shape[1], HALF=head_dim // 2,
        Q_UP=triton.next_power_of_2(num_q_heads), KV_UP=triton.next_power_of_2(k.shape[1]), num_warps=4,
    )  # fmt: skip
    return outs


@triton.jit
def _gate(x, out, width, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = columns < width
    places = x + row * 2 * width + columns
    values = tl.load(places, mask=is_there, other=0.0).to(tl.float32)
    factors = tl.load(places + width, mask=is_there, other=0.0).to(tl.float32)
    result = values * tl.sigmoid(values) * factors
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def _rotate_heads(
    source, target, cos, sin, source_stride, target_stride, HEADS: tl.constexpr, UP: tl.constexpr, HALF: tl.constexpr
):
    heads, columns = tl.arange(0, UP), tl.arange(0, HALF)
    is_there = (heads < HEADS)[:, None] & (columns < HALF)[None, :]
    places = source + heads[:, None] * source_stride + columns[None, :]
    low = tl.load(places, mask=is_there, other=0.0).to(tl.float32)
    high = tl.load(places + HALF, mask=is_there, other=0.0).to(tl.float32)
    places = target + heads[:, None] * target_stride + columns[None, :]
    tl.store(places, (low * cos - high * sin).to(target.dtype.element_ty), mask=is_there)
    tl.store(places + HALF, (high * cos + low * sin).to(target.dtype.element_ty), mask=is_there)


@triton.jit
def _rotate(
    q, k, q_out, k_out, cos, sin, num_tokens,
    q_b, q_h, q_t, k_b, k_h, k_t, q_out_b, q_out_h, q_out_t, k_out_b, k_out_h, k_out_t, cos_b, cos_t, sin_b, sin_t,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, Q_UP: tl.constexpr, KV_UP: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // num_tokens).to(tl.int64)
    t = (tl.program_id(0) % num_tokens).to(tl.int64)
    columns = tl.arange(0, HALF)
    cos_row = tl.load(cos + b * cos_b + t * cos_t + columns).to(tl.float32)[None, :]
    sin_row = tl.load(sin + b * sin_b + t * sin_t + columns).to(tl.float32)[None, :]
    _rotate_heads(
        q + b * q_b + t * q_t, q_out + b * q_out_b + t * q_out_t, cos_row, sin_row, q_h, q_out_h, Q_HEADS, Q_UP, HALF
    )
    _rotate_heads(
        k + b * k_b + t * k_t, k_out + b * k_out_b + t * k_out_t, cos_row, sin_row, k_h, k_out_h, KV_HEADS, KV_UP, HALF
    )
