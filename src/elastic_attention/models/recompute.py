"""Less memory in training: layers keep their input only and run again in the backward."""

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UnsupportedModel
from ..kernels.kept import keep_results


def recompute_layers(model: Any, is_on: bool, *, keeps_attention: bool = False, num_whole: int = 0) -> None:
    """Begin or end it. The model stays in evaluation mode: nothing drops out.

    Args:
        model: transformers model.
        is_on: begin.
        keeps_attention: layers also keep the results of the fused attention, which then is not computed again.
        num_whole: the last layers, which keep everything. Their memory is free again before any layer runs again.

    Raises:
        UnsupportedModel: the layers of the model do not offer it, or are fewer than `num_whole`.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModel(f"{type(model).__name__} cannot run its layers again; set recompute_layers = false.")
    if num_whole > len(layers):
        raise UnsupportedModel(
            f"{type(model).__name__} has {len(layers)} layers; set whole_layers={num_whole} to no more than that."
        )
    kept: dict[str, Any] = {"context_fn": keep_results} if keeps_attention else {}
    again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False, **kept)
    for index, layer in enumerate(layers):
        runs_again = is_on and index < len(layers) - num_whole
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = runs_again, again
        layer.training = runs_again  # this module alone; those inside it stay as they are
