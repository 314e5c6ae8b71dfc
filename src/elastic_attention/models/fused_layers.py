"""Faster training: the small operations of a model's layers become a few kernels (torch.compile)."""

import sys
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UnsupportedModel
from .families import unwrap_model

_ROTATE = "apply_rotary_pos_emb"
_VARIANTS = 64  # norms of several widths and MLPs share the code that torch.compile counts variants of


def fuse_layers(model: Any, is_on: bool, *, backend: str = "inductor") -> None:
    """Begin or end it: norms, MLPs and the rotation of queries and keys. Routes and attention stay as they are.

    Kernels are made when they run first, which takes some twenty seconds; batches of other lengths need no new ones.
    The rotation is a function of the model's family, so other models of that family in this process take the fused one.

    Args:
        model: transformers model, or a PeftModel around one.
        is_on: begin.
        backend: of torch.compile.

    Raises:
        UnsupportedModel: no layer of the model has a norm or an MLP that is found by its name.
    """
    parts = [
        part
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for name, part in layer.named_modules()
        if name.endswith(("norm", "mlp"))
    ]
    if not parts:
        raise UnsupportedModel(f"{type(model).__name__} has no layers with norms and MLPs; set fuse_layers = false.")
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    for part in parts:
        part._compiled_call_impl = None
        if is_on:
            part.compile(dynamic=True, backend=backend)
    home = sys.modules[type(unwrap_model(model)).__module__]
    if rotate := getattr(home, _ROTATE, None):
        plain = getattr(rotate, "plain", rotate)
        setattr(home, _ROTATE, _compile(plain, backend) if is_on else plain)


def _compile(function: Any, backend: str) -> Any:
    compiled: Any = torch.compile(function, dynamic=True, backend=backend)
    compiled.plain = function
    return compiled
