"""Checkpoints of a run: tensors in one safetensors file, no pickle; a run killed at any moment resumes bit-equal."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ElasticAttentionError
from ..records import write_file
from .identity import RunIdentity, fingerprint

_logger = logging.getLogger(__name__)
FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
State = dict[str, dict[str, Tensor]]
__all__ = ["FILE", "PREVIOUS", "Checkpoint", "fingerprint", "load_checkpoint", "save_checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """State after `step` steps: tensors by group, and the states of the optimisers."""

    step: int
    state: State
    optimizers: dict[str, dict[int, dict[str, Tensor]]]

    def explain_misfit(self, own: State) -> str | None:
        """The first tensor that a run with the state `own` lacks, misses or has in another shape, in words."""
        for group, values in own.items():
            theirs = self.state.get(group)
            if theirs is None and group != "source":  # older versions had fewer groups
                continue
            for name in sorted(values.keys() | (theirs := theirs or {}).keys()):
                here, there = (f"{list(x[name].shape)}" if name in x else "absent" for x in (values, theirs))
                if here != there:
                    return f"{group}/{name} is {there} there and {here} here"
        return None

    def restore(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        """Put the optimisers into their saved states."""
        for name, optimizer in optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self.optimizers.get(name, {}), "param_groups": groups})


def save_checkpoint(
    folder: Path, identity: RunIdentity, step: int, state: State, optimizers: dict[str, torch.optim.Optimizer]
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
    metadata = {
        "step": str(step),
        "fingerprint": identity.digest,
        "run": identity.to_json(),
        "checksum": _checksum(data),
    }
    metadata["seal"] = _seal(metadata)
    try:
        if (folder / FILE).exists():  # from here on it is found under its second name, so at no moment is there none
            os.replace(folder / FILE, folder / PREVIOUS)
        write_file(folder / FILE, save(data, metadata=metadata))
    except (OSError, ElasticAttentionError) as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written ({error}). The one before it is whole: free some "
            "space and run the same command again."
        ) from error


def load_checkpoint(folder: Path, identity: RunIdentity) -> Checkpoint | None:
    """The last whole checkpoint of a run; None if there is none.

    A damaged one is named in the log and removed, and the one before it is taken. What a killed process has left
    half-written is cleared away.

    Raises:
        CheckpointError: all that there are are damaged, or they belong to another recipe or other data.
    """
    for leftover in folder.glob(f".{FILE}.*.tmp"):
        leftover.unlink(missing_ok=True)
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


def _read(path: Path, identity: RunIdentity) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata()
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        step, checksum, owner = int(metadata["step"]), metadata["checksum"], metadata["fingerprint"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _Damaged(f"{path} is damaged ({error})") from error
    if checksum != _checksum(tensors) or metadata.get("seal", _seal(metadata)) != _seal(metadata):
        raise _Damaged(f"{path} is damaged (its checksum is wrong)")
    if owner != identity.digest:
        raise CheckpointError(
            f"{path} belongs to another run: {identity.explain_difference(metadata.get('run'))}. Choose another output "
            "folder, or remove it."
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


def _seal(metadata: dict[str, str]) -> str:
    """Checksum of the metadata, which that of the tensors does not cover."""
    words = [metadata.get(name, "") for name in ("step", "fingerprint", "run", "checksum")]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
