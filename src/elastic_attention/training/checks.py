"""What is looked at before the first step of a run: where it writes, its model, and whether the samples fit."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import SparsePattern
from ..errors import RecipeError
from ..models.loading import load_model
from ..patterns import build_pattern
from .data.batch import PackedBatch
from .data.corpus import Corpus
from .data.steps import PackedSteps
from .recipe import Recipe

_logger = logging.getLogger(__name__)


def check_output(folder: Path) -> None:
    """Refuse a place that cannot be written, before anything long begins.

    Raises:
        RecipeError: names the place.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RecipeError(f"The output {folder} cannot be a folder, {nearest} is a file; choose another.")
    if not os.access(nearest, os.W_OK):
        raise RecipeError(f"The output {folder} cannot be written, {nearest} is read-only; choose another.")


def check_fit(model: Any, data: PackedSteps) -> None:
    """Refuse a tokenizer of another model, and samples that the model cannot place.

    Raises:
        RecipeError: names the sizes.
    """
    rows, largest = model.get_input_embeddings().weight.shape[0], data.corpus.largest_token
    if largest >= rows:
        raise RecipeError(
            f"the data holds the token {largest}, the model embeds {rows}; use the model's own tokenizer."
        )
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(data.corpus.lengths[data.corpus.fitting.kept].max())
    if reach is not None and longest > reach:
        raise RecipeError(
            f"the longest sample has {longest} tokens, the model reads {reach}; lower data.packs.tokens to that "
            "and set data.packs.over_long, or load the model with a longer context."
        )


def open_model(recipe: Recipe, device: str | None) -> tuple[Any, Any]:
    """The model of a recipe and its tokenizer.

    Raises:
        RecipeError: it cannot be loaded.
    """
    try:
        return load_model(recipe.model, dtype=recipe.precision, device=device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RecipeError(
            f"The model {recipe.model!r} of the recipe cannot be loaded ({error}). Give a folder, a hub id, or "
            "'smollm2'."
        ) from error


def announce_samples(recipe: Recipe, corpus: Corpus, heldout: Sequence[PackedBatch], pattern: SparsePattern) -> None:
    """Tell the log what a run learns from; warn of categories without samples and of prompts too short to be routed."""
    rows = corpus.report()["categories"]
    counts = ", ".join(f"{row['samples']:,} {name}" for name, row in rows.items())
    tokens, held = sum(row["tokens"] for row in rows.values()), sum(len(pack.categories) for pack in heldout)
    _logger.info("Samples: %s, of %s tokens together; %s held out.", counts, f"{tokens:,}", f"{held:,}")
    if absent := sorted(name for name in recipe.intervals if not rows.get(name, {}).get("samples")):
        _logger.warning("No sample is of %s, which [intervals] names.", ", ".join(absent))
    lengths, dense = corpus.lengths[corpus.fitting.kept], build_pattern(pattern).dense_tokens
    if 2 * (short := int((lengths <= dense).sum())) > len(lengths):
        _logger.warning(
            "%d of %d samples have no more than %d tokens, which sparse heads read anyway: inference leaves such "
            "prompts dense. Use longer samples, or smaller sizes in [pattern].",
            *(short, len(lengths), dense),
        )
