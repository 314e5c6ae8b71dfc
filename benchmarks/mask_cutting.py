"""A static mask of another sparsity, from the numbers that its training or its ranking left beside it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from elastic_attention.models.checkpoint import STATIC_FILE, read_static_adapter, save_static_routes
from elastic_attention.models.static_masks import mark_sparsest

# By the name of a mask's numbers: do the largest (1) or the smallest (-1) become sparse first?
SIGNS = {"logits": 1, "log_alpha": -1, "alpha": -1, "retrieval_scores": -1}


def cut_mask(folder: Path, output: Path, msr: float) -> Path:
    """The mask of `folder` with round(msr * heads) sparse heads, in the folder `output`; all layers have a row."""
    mask, facts = read_static_adapter(folder)
    numbers = {name: values for name, values in load_file(folder / STATIC_FILE).items() if name in SIGNS}
    ((name, values),) = numbers.items()
    assert values.shape == mask.shape
    save_static_routes(output, mark_sparsest(SIGNS[name] * values, msr), numbers, facts | {"cut_at": msr})
    return output
