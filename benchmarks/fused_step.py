"""A decode step of a transformers model in fewer kernels, as a serving engine has it, for dense and elastic runs alike.

Queries, keys and values are one product; residuals are added where the next norm reads them; the norms of queries and
keys are part of their rotation. Inputs of more than one token a sequence take the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

Forward = Callable[..., Any]


class StepFusion:
    """What a module of a decode step leaves for a later one, to be computed there with its own work.

    Args:
        model: layers with `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp`, added up in that order.
        rotate: rotates q and k; takes `norms` as `fused_model.rotate` does.
    """

    def __init__(self, model: Any, rotate: Forward) -> None:
        self._model, self._rotate = model, rotate
        self._residual: Tensor | None = None
        self._hidden: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._norms: list[Any] = []

    def forwards(self) -> Iterator[tuple[Any, Forward]]:
        """Modules with the forwards they get; the weights of their projections become views of one matrix a layer."""
        for module in self._model.modules():
            if type(module).__name__.endswith("DecoderLayer"):
                yield module, partial(self._run_layer, module)
                yield from self._attention_forwards(module.self_attn)
        norm = self._model.base_model.norm
        yield norm, partial(self._run_last_norm, norm)

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """RoPE, with the norms that were left for it."""
        norms, self._norms = self._norms, []
        rotated: tuple[Tensor, Tensor] = self._rotate(q, k, cos, sin, unsqueeze_dim, norms=norms)
        return rotated

    def _attention_forwards(self, attention: Any) -> Iterator[tuple[Any, Forward]]:
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        if any(p.bias is not None for p in projections):
            return
        merged = torch.cat([p.weight.data for p in projections])
        sizes = [len(p.weight) for p in projections]
        for place, (projection, part) in enumerate(zip(projections, merged.split(sizes), strict=True)):
            projection.weight.data = part
            yield projection, partial(self._project, projection, place, merged, sizes)
        if hasattr(attention, "q_norm"):
            for norm in (attention.q_norm, attention.k_norm):
                yield norm, partial(self._pass_norm, norm, norm.forward)

    def _project(self, projection: Any, place: int, merged: Tensor, sizes: list[int], x: Tensor) -> Tensor:
        if x.shape[-2] > 1:
            return linear(x, projection.weight)
        if place == 0:
            self._hidden, self._parts = x, linear(x, merged).split(sizes, -1)
        return self._parts[place] if x is self._hidden else linear(x, projection.weight)

    def _pass_norm(self, norm: Any, plain: Forward, x: Tensor) -> Tensor:
        if not any(x.data_ptr() == part.data_ptr() for part in self._parts):
            normed: Tensor = plain(x)
            return normed
        self._norms.append(norm)
        return x

    def _run_layer(self, layer: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if hidden_states.shape[1] > 1:
            self._parts = ()
            plain: Tensor = type(layer).forward(layer, hidden_states, **kwargs)
            return plain
        before = self._residual if layer.self_attn.layer_idx else None
        hidden, normed = add_and_normalize(hidden_states, before, layer.input_layernorm)
        attended, _ = layer.self_attn(hidden_states=normed, **kwargs)
        self._residual, normed = add_and_normalize(attended, hidden, layer.post_attention_layernorm)
        out: Tensor = layer.mlp(normed)
        return out

    def _run_last_norm(self, norm: Any, hidden_states: Tensor) -> Tensor:
        residual, self._residual = self._residual, None
        return add_and_normalize(hidden_states, residual, norm)[1]


def add_and_normalize(x: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """x + residual, both (..., D) and contiguous, and its RMSNorm; one launch. Without a residual x itself."""
    total = x if residual is None else torch.empty_like(x)
    out, width = torch.empty_like(x), x.shape[-1]
    _add_and_normalize[(x.numel() // width,)](
        x, total if residual is None else residual, norm.weight, total, out, width, norm.variance_epsilon,
        HAS_RESIDUAL=residual is not None, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return total, out


@triton.jit
def _add_and_normalize(
    x, residual, weight, total, out, width, epsilon, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    columns = tl.arange(0, BLOCK)
    is_there = columns < width
    places = tl.program_id(0).to(tl.int64) * width + columns
    values = tl.load(x + places, mask=is_there, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(residual + places, mask=is_there, other=0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(total + places, values, mask=is_there)
    values = values.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 0) / width + epsilon)
    weights = tl.load(weight + columns, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + places, (values * factor * weights).to(out.dtype.element_ty), mask=is_there)
