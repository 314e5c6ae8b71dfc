"""Norms, rotations and gates of a transformers model as one kernel each, for dense and elastic runs alike.

A serving engine has them fused; as transformers has them, a decode step of an 8B model is half small kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from fused_step import StepFusion
from torch import Tensor, nn


@contextmanager
def fused_elementwise(model: Any) -> Iterator[None]:
    """Inside, RMSNorm, RoPE and the gate of the MLP are fused kernels, and a decode step more than that (`fused_step`).

    The weights stay as they are.

    Raises:
        ValueError: the model is not of the kind that this knows: RMSNorm, half-rotated RoPE, a SiLU gate.
    """
    home = sys.modules[type(model).__module__]
    if not hasattr(home, "apply_rotary_pos_emb"):
        raise ValueError(f"{home.__name__} has no apply_rotary_pos_emb")
    plain, changed = home.apply_rotary_pos_emb, {}

    def swap(module: Any, forward: Any) -> None:
        module.forward = forward
        changed[id(module)] = module

    try:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                swap(module, partial(_normalize, module))
            if type(module).__name__.endswith("MLP"):
                if not isinstance(module.act_fn, nn.SiLU) and type(module.act_fn).__name__ != "SiLUActivation":
                    raise ValueError(f"{type(module).__name__} has no SiLU gate but {type(module.act_fn).__name__}")
                swap(module, partial(_feed_forward, module, _merge_weights(module.gate_proj, module.up_proj)))
        step = StepFusion(model, rotate)
        for module, forward in step.forwards():
            swap(module, forward)
        home.apply_rotary_pos_emb = step.rotate
        yield
    finally:
        home.apply_rotary_pos_emb = plain
        for module in changed.values():
            del module.forward


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


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, *, norms: Sequence[Any] = ()
) -> tuple[Tensor, Tensor]:
    """RoPE of q (B, H, T, D) and k (B, G, T, D) with cos and sin (B or 1, T, D) whose halves are equal; one launch.

    `norms` are the RMSNorms that q and k still need before it, or none. The results are dense, in the order of q and k.
    """
    if unsqueeze_dim != 1 or q.shape[-1] != cos.shape[-1]:
        raise ValueError("the fused rotation knows q (B, H, T, D) and whole rotations only")
    batch, num_q_heads, num_tokens, head_dim = q.shape
    outs = torch.empty_like(q), torch.empty_like(k)
    weights = [norm.weight for norm in norms] or [q, k]
    _rotate[(batch * num_tokens,)](
        q, k, *outs, cos, sin, *weights, norms[0].variance_epsilon if norms else 0.0, num_tokens,
        *q.stride()[:3], *k.stride()[:3], *outs[0].stride()[:3], *outs[1].stride()[:3],
        cos.stride(0) if len(cos) > 1 else 0, cos.stride(1), sin.stride(0) if len(sin) > 1 else 0, sin.stride(1),
        Q_HEADS=num_q_heads, KV_HEADS=k.shape[1], HALF=head_dim // 2,
        Q_UP=triton.next_power_of_2(num_q_heads), KV_UP=triton.next_power_of_2(k.shape[1]), HAS_NORMS=bool(norms),
        num_warps=4,
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
    source, target, cos, sin, weight, epsilon, source_stride, target_stride,
    HEADS: tl.constexpr, UP: tl.constexpr, HALF: tl.constexpr, HAS_NORMS: tl.constexpr,
):  # fmt: skip
    heads, columns = tl.arange(0, UP), tl.arange(0, HALF)
    is_there = (heads < HEADS)[:, None] & (columns < HALF)[None, :]
    places = source + heads[:, None] * source_stride + columns[None, :]
    low = tl.load(places, mask=is_there, other=0.0).to(tl.float32)
    high = tl.load(places + HALF, mask=is_there, other=0.0).to(tl.float32)
    if HAS_NORMS:
        factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + epsilon)[:, None]
        low *= factor * tl.load(weight + columns).to(tl.float32)[None, :]
        high *= factor * tl.load(weight + HALF + columns).to(tl.float32)[None, :]
        low = low.to(target.dtype.element_ty).to(tl.float32)
        high = high.to(target.dtype.element_ty).to(tl.float32)
    places = target + heads[:, None] * target_stride + columns[None, :]
    tl.store(places, (low * cos - high * sin).to(target.dtype.element_ty), mask=is_there)
    tl.store(places + HALF, (high * cos + low * sin).to(target.dtype.element_ty), mask=is_there)


@triton.jit
def _rotate(
    q, k, q_out, k_out, cos, sin, q_weight, k_weight, epsilon, num_tokens,
    q_b, q_h, q_t, k_b, k_h, k_t, q_out_b, q_out_h, q_out_t, k_out_b, k_out_h, k_out_t, cos_b, cos_t, sin_b, sin_t,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, Q_UP: tl.constexpr, KV_UP: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // num_tokens).to(tl.int64)
    t = (tl.program_id(0) % num_tokens).to(tl.int64)
    columns = tl.arange(0, HALF)
    cos_row = tl.load(cos + b * cos_b + t * cos_t + columns).to(tl.float32)[None, :]
    sin_row = tl.load(sin + b * sin_b + t * sin_t + columns).to(tl.float32)[None, :]
    _rotate_heads(
        q + b * q_b + t * q_t, q_out + b * q_out_b + t * q_out_t, cos_row, sin_row, q_weight, epsilon, q_h, q_out_h,
        Q_HEADS, Q_UP, HALF, HAS_NORMS,
    )  # fmt: skip
    _rotate_heads(
        k + b * k_b + t * k_t, k_out + b * k_out_b + t * k_out_t, cos_row, sin_row, k_weight, epsilon, k_h, k_out_h,
        KV_HEADS, KV_UP, HALF, HAS_NORMS,
    )  # fmt: skip
