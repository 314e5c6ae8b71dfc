"""What a sample's loss is, by the name a recipe gives it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.answers import IGNORED, AnswerBatch, score_answers

if TYPE_CHECKING:
    from ..models.handle import Handle


def measure_lm(handle: "Handle", batch: AnswerBatch) -> Tensor:
    """Mean cross-entropy of each sample's labels under the routes in force, (B,) float32."""
    return score_answers(handle.model, batch)[0]


def measure_distillation(handle: "Handle", batch: AnswerBatch) -> Tensor:
    """Squared distance of the final hidden states from those of the base model (DuoAttention), (B,) float32.

    Mean over the hidden features and over the positions that predict each sample's labels.
    """
    is_counted = batch.labels != IGNORED
    columns = is_counted.any(dim=0).nonzero()[:, 0]

    def read_states() -> Tensor:
        output = handle.model.base_model(input_ids=batch.input_ids, use_cache=False)
        return output.last_hidden_state[:, columns - 1].float()

    with torch.no_grad(), handle.disabled():
        wanted = read_states()
    distance = (read_states() - wanted).square().mean(dim=-1)
    weights = is_counted[:, columns].float()
    return (distance * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


LOSSES: dict[str, Callable[["Handle", AnswerBatch], Tensor]] = {
    "lm": measure_lm,
    "distillation": measure_distillation,
}
