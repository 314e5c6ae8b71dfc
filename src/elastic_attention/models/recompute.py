"""Less memory in training: layers keep their input only and run again in the backward."""

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UnsupportedModel
from ..kernels.kept import keep_results


def recompute_layers(model: Any, is_on: bool, *, keeps_attention: bool = False) -> None:
    """Begin or end it. The model stays in evaluation mode: nothing drops out.

    Args:
        model: transformers model.
        is_on: begin.
        keeps_attention: layers also keep the results of the fused attention, which then is not computed again.

    Raises:
        UnsupportedModel: the layers of the model do not offer it.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModel(f"{type(model).__name__} cannot run its layers again; set recompute_layers = false.")
    kept: dict[str, Any] = {"context_fn": keep_results} if keeps_attention else {}
    again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False, **kept)
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = is_on, again
        layer.training = is_on  # this module alone; those inside it stay as they are
