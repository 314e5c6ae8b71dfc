"""Held-out checks during training: the score and the argmax MSR of every kind."""

from typing import Any

import torch

from ..models.answers import collate_rows, draw_row, pad_token, score_answers
from ..models.handle import Handle
from ..sparsity import model_sparsity_ratio
from ..tasks import KINDS
from .batches import StepDataset, kinds_of
from .recipe import Recipe
from .sources import RouteModel

_SPLIT = "heldout"


@torch.no_grad()
def validate(
    recipe: Recipe, handle: Handle, source: RouteModel, model: Any, tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Score held-out samples as inference routes them, lengths in turn.

    Returns:
        kind -> {"score": share right (exact kinds) or token accuracy, "lm_loss", "msr"}.
    """
    data = StepDataset(recipe.data, tokenizer, seed=recipe.seed, steps=1)
    lengths, results = recipe.data.lengths, {}
    for kind in kinds_of(recipe.data):
        rows = [
            draw_row(
                kind,
                seed=recipe.seed,
                index=i,
                length=lengths[i % len(lengths)],
                corpora=data.corpora,
                tokenizer=tokenizer,
                split=_SPLIT,
            )
            for i in range(recipe.validation_samples)
        ]
        sums = {"score": 0.0, "lm_loss": 0.0, "msr": 0.0}
        for row in rows:
            batch = collate_rows([row], pad=pad_token(tokenizer)).to(model.device)
            with handle.routed_by(source.decide, is_sampling=False, prompt_lengths=batch.prompt_lengths) as record:
                loss, accuracy = score_answers(model, batch)
            is_exact = KINDS[kind].metric == "exact"
            sums["score"] += float(accuracy.item() == 1.0) if is_exact else accuracy.item()
            sums["lm_loss"] += loss.item()
            sums["msr"] += model_sparsity_ratio(record.stack()).item()
        results[kind] = {name: value / max(1, len(rows)) for name, value in sums.items()}
    return results
