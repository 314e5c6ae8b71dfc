"""Checkpoints of a run: tensors in one safetensors file, no pickle; a run killed at any moment resumes bit-equal."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import to_dict
from ..errors import CheckpointError, ElasticAttentionError
from ..records import write_file
from .recipe import Recipe

_logger = logging.getLogger(__name__)
FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
State = dict[str, dict[str, Tensor]]
# What does not change the result, or by rounding alone, may differ between a run and its resumption.
_FREE = (
    "checkpoint_every",
    "keep_attention",
    "on_nan",
    "parallel",
    "recompute_layers",
    "validate_every",
    "validation_samples",
)
_FREE_OF_DATA = ("workers", "corpora")  # of the texts their content counts, which the identity of the data holds
_FREE_OF_PACKS = ("cache", "files", "heldout_files", "sources")


def fingerprint(recipe: Recipe, data: str) -> str:
    """Identity of everything that decides the result: the recipe, and the samples by `Corpus.identity`."""
    content = {k: v for k, v in to_dict(recipe).items() if k not in _FREE}
    content["data"] = {k: v for k, v in content["data"].items() if k not in _FREE_OF_DATA}
    content["data"]["packs"] = {k: v for k, v in content["data"]["packs"].items() if k not in _FREE_OF_PACKS}
    return hashlib.sha256(json.dumps([content, data], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """State after `step` steps: tensors by group, and the states of the optimisers."""

    step: int
    state: State
    optimizers: dict[str, dict[int, dict[str, Tensor]]]

    def restore(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        """Put the optimisers into their saved states."""
        for name, optimizer in optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self.optimizers.get(name, {}), "param_groups": groups})


def save_checkpoint(
    folder: Path, identity: str, step: int, state: State, optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Write the state after `step` steps, whole or not at all; the one before is kept beside it.

    Raises:
        CheckpointError: the disk is full or refuses; the last checkpoint is still there.
    """
    from safetensors.torch import save

    tensors = {f"{group}/{name}": t for group, values in state.items() for name, t in values.items()}
    for name, optimizer in optimizers.items():
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}/{i}/{key}": torch.as_tensor(value) for key, value in values.items()}
    data = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"step": str(step), "fingerprint": identity, "checksum": _checksum(data)}
    try:
        if (folder / FILE).exists():  # from here on it is found under its second name, so at no moment is there none
            os.replace(folder / FILE, folder / PREVIOUS)
        write_file(folder / FILE, save(data, metadata=metadata))
    except (OSError, ElasticAttentionError) as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written ({error}). The one before it is whole: free some "
            "space and run the same command again."
        ) from error


def load_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """The last whole checkpoint of a run; None if there is none.

    A damaged one is named in the log and removed, and the one before it is taken.

    Raises:
        CheckpointError: all that there are are damaged, or they belong to another recipe or other data.
    """
    damage = []
    for path in (folder / FILE, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            found = _read(path, identity)
        except _Damaged as error:
            damage.append(str(error))
            _logger.warning("%s; looking for the checkpoint before it.", error)
            continue
        if damage:  # or the next one that is saved would push out the whole one
            (folder / FILE).unlink(missing_ok=True)
        return found
    if damage:
        raise CheckpointError(f"{'; '.join(damage)}. Remove {folder} to start over.")
    return None


class _Damaged(Exception):
    """A checkpoint cannot be read."""


def _read(path: Path, identity: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata()
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        step, checksum, owner = int(metadata["step"]), metadata["checksum"], metadata["fingerprint"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _Damaged(f"{path} is damaged ({error})") from error
    if checksum != _checksum(tensors):
        raise _Damaged(f"{path} is damaged (its checksum is wrong)")
    if owner != identity:
        raise CheckpointError(
            f"{path} belongs to another recipe, other data or another tokenizer; choose another output folder, or "
            "remove it."
        )
    state: State = {}
    optimizers: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        group, rest = name.split("/", 1)
        if group.startswith("optimizer."):
            index, key = rest.split("/", 1)
            optimizers.setdefault(group.removeprefix("optimizer."), {}).setdefault(int(index), {})[key] = tensor
        else:
            state.setdefault(group, {})[rest] = tensor
    return Checkpoint(step=step, state=state, optimizers=optimizers)


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
