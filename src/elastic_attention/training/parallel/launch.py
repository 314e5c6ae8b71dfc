"""Running a recipe on the processes that torchrun started, or alone."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..recipe import Recipe
from ..trainer import train
from .engine import ParallelEngine
from .ranks import choose_local_device, join_ranks


def is_first_process() -> bool:
    """Is this the process that prints and writes?"""
    return int(os.environ.get("RANK", "0")) == 0


def train_on_ranks(
    recipe: Recipe, output: str | Path, *, device: str | None = None, max_seconds: float | None = None, **parts: Any
) -> dict[str, Any]:
    """`train` on every process of the run; where there is one only, just that.

    Args:
        recipe, output, device, max_seconds: as in `train`; `output` is a folder that all nodes see.
        parts: `model` and `tokenizer` of `train`.

    Returns:
        What `train` returns, the same on every process.

    Raises:
        LostRank: another process died or hangs.
        RecipeError, CheckpointError, …: as in `train`.
    """
    place = torch.device(choose_local_device(device))
    with join_ranks(recipe.parallel, place) as ranks:
        build = partial(ParallelEngine, ranks=ranks)
        return train(recipe, output, device=str(place), max_seconds=max_seconds, build_engine=build, **parts)
