"""The last layer of a language model: from final hidden states to logits."""

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModel


def find_output_layer(model: Any) -> tuple[Tensor, float]:
    """The weight (V, D) of the output layer and the factor of its logits.

    Families hide more than a product in this step. So it is tried on three tokens, and a model whose logits are not
    factor * hidden @ weight.T is refused.

    Raises:
        UnsupportedModel: the logits are something else, such as soft-capped or biased.
    """
    layer = model.get_output_embeddings()
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        raise UnsupportedModel(f"{type(model).__name__} has no output layer with a weight; train a causal LM.")
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if softcap or getattr(layer, "bias", None) is not None:
        what = f"soft-capped at {softcap}" if softcap else "biased"
        raise UnsupportedModel(f"The logits of {type(model).__name__} are {what}, which the training loss lacks.")
    ids = torch.arange(3, device=layer.weight.device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        plain = hidden @ layer.weight.float().T
    factor = float((plain * logits).sum() / plain.square().sum())
    error = (factor * plain - logits).abs().max() / logits.abs().max()
    if not error < 8 * torch.finfo(layer.weight.dtype).eps:
        raise UnsupportedModel(
            f"The logits of {type(model).__name__} are not its hidden states times its output weight (relative error "
            f"{error:.1e}), and the training loss knows nothing else."
        )
    # Rounding of the measurement aside, nearly all models have exactly one.
    return layer.weight, 1.0 if abs(factor - 1) < 1e-2 else factor
