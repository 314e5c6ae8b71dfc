"""What is looked at before the first step of a run: where it writes, its model, and whether the samples fit."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import SparsePattern
from ..errors import RecipeError
from ..models.loading import load_model
from ..patterns import build_pattern
from .data.batch import PackedBatch
from .data.corpus import Corpus
from .data.steps import PackedSteps
from .engine import Engine
from .familiarity import is_familiar
from .recipe import Recipe

_logger = logging.getLogger(__name__)
_READ_SAMPLES = 4  # to see whether the model knows its tokens


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


def check_tokenizer(engine: Engine, tokenizer: Any, corpus: Corpus) -> None:
    """Notice a tokenizer whose tokens fit the model by number but mean something else to it.

    An answer ends with the tokenizer's end token, so it must be one that the model ends with. Beyond that, a model
    should be better at text than at its tokens in random order; a warning says if it is not.

    Raises:
        RecipeError: the model ends with other tokens; names them.
    """
    model, end = engine.model, getattr(tokenizer, "eos_token_id", None)
    configs = model.config.get_text_config(), getattr(model, "generation_config", None)
    ends = {i for config in configs for i in _list_ids(getattr(config, "eos_token_id", None))}
    names = f"the tokenizer {tokenizer.name_or_path!r}", f"the model {model.config._name_or_path!r}"
    if end is not None and ends and end not in ends:
        raise RecipeError(
            f"{names[0]} ends answers with the token {end} ({tokenizer.eos_token!r}), {names[1]} with {sorted(ends)}; "
            "use the model's own tokenizer, or add the token to model.generation_config.eos_token_id."
        )
    samples = (corpus.sample(int(number), 0.0).tokens for number in corpus.first_of_tasks(1)[:_READ_SAMPLES])
    if not is_familiar(engine.measure_text, (torch.from_numpy(tokens.astype("int64")) for tokens in samples)):
        _logger.warning(
            "To %s the tokens of %s mean nothing: it is no better at the samples than at their tokens in random order. "
            "The tokenizer is of another model, or the weights are random.",
            *(names[1], names[0]),
        )


def _list_ids(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def open_model(recipe: Recipe, device: str | None) -> tuple[Any, Any]:
    """The model of a recipe and its tokenizer.

    Raises:
        RecipeError: it cannot be loaded.
    """
    try:
        return load_model(recipe.model, dtype=recipe.precision, device=device)
    except Exception as error:  # what a damaged folder raises in transformers is of any type
        raise RecipeError(
            f"The model {recipe.model!r} of the recipe cannot be loaded ({type(error).__name__}, {error}). Give a "
            "folder, a hub id, or 'smollm2'."
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
