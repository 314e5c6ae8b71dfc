"""What a token's loss is, by the name a recipe gives it.

Shape letters: N tokens of a pack, D hidden width.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.answers import IGNORED
from .cross_entropy import linear_cross_entropy
from .data.batch import PackedBatch

if TYPE_CHECKING:
    from .engine import Engine


def measure_lm(engine: "Engine", batch: PackedBatch) -> Tensor:
    """Cross-entropy of each token that counts under the routes in force, (N,) float32, 0 for the others."""
    weight, scale = engine.output_layer()
    hidden = engine.hidden_states(batch)
    return linear_cross_entropy(hidden if scale == 1 else hidden * scale, weight, batch.targets)


def measure_distillation(engine: "Engine", batch: PackedBatch) -> Tensor:
    """Squared distance of the final hidden states from those under full attention (DuoAttention), (N,) float32.

    Mean over the hidden features, at the positions that predict the tokens that count; 0 at the others.
    """
    places = (batch.targets != IGNORED).nonzero()[:, 0]
    with torch.no_grad(), engine.all_full():
        wanted = engine.hidden_states(batch)[places].float()
    distance = (engine.hidden_states(batch)[places].float() - wanted).square().mean(dim=-1)
    return distance.new_zeros(len(batch.targets)).index_copy(0, places, distance)


LOSSES: dict[str, Callable[["Engine", PackedBatch], Tensor]] = {
    "lm": measure_lm,
    "distillation": measure_distillation,
}
