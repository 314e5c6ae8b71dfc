"""Checkpoints of a run: tensors in one safetensors file, no pickle; a run killed at any moment resumes bit-equal."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ..config import to_dict
from ..errors import CheckpointError
from ..records import write_file
from .recipe import Recipe

FILE = "checkpoint.safetensors"
# What does not change the result may differ between a run and its resumption.
_FREE = ("checkpoint_every", "validate_every", "validation_samples")


def fingerprint(recipe: Recipe) -> str:
    """Identity of everything in the recipe that decides the result."""
    content = {k: v for k, v in to_dict(recipe).items() if k not in _FREE}
    content["data"] = {k: v for k, v in content["data"].items() if k not in ("workers", "corpora")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(
    folder: Path,
    recipe: Recipe,
    step: int,
    groups: dict[str, dict[str, Tensor]],
    optimizers: dict[str, torch.optim.Optimizer],
) -> None:
    """Write the state after `step` steps, whole or not at all."""
    from safetensors.torch import save

    tensors = {f"{group}/{name}": t for group, state in groups.items() for name, t in state.items()}
    for name, optimizer in optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}/{i}/{key}": torch.as_tensor(value) for key, value in state.items()}
    data = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_file(folder / FILE, save(data, metadata={"step": str(step), "fingerprint": fingerprint(recipe)}))


def load_checkpoint(
    folder: Path, recipe: Recipe, optimizers: dict[str, torch.optim.Optimizer]
) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """Read the checkpoint of a run and restore its optimisers; None if there is none.

    Returns:
        (finished steps, tensors by group).

    Raises:
        CheckpointError: it is damaged or of another recipe.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata()
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        step = int(metadata["step"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to start over.") from error
    if metadata["fingerprint"] != fingerprint(recipe):
        raise CheckpointError(f"{path} belongs to another recipe; choose another output folder or remove it.")
    groups: dict[str, dict[str, Tensor]] = {}
    states: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        group, rest = name.split("/", 1)
        if group.startswith("optimizer."):
            index, key = rest.split("/", 1)
            states.setdefault(group.removeprefix("optimizer."), {}).setdefault(int(index), {})[key] = tensor
        else:
            groups.setdefault(group, {})[rest] = tensor
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(
            {"state": states.get(name, {}), "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return step, groups
