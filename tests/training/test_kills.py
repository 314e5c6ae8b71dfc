"""A run that breaks off at any moment goes on bit for bit as if it had not."""

import pytest
import torch
from tiny_runs import assert_equal_runs, parts

from elastic_attention.training import checkpoints, trainer
from elastic_attention.training.checkpoints import FILE, PREVIOUS
from elastic_attention.training.engine import Engine
from elastic_attention.training.holding import LOCK
from elastic_attention.training.trainer import train

FILES = [LOCK, "adapter", PREVIOUS, FILE, "log.jsonl", "tensorboard"]


def dying(function, at):
    """`function`, but the call number `at` does not come back."""
    calls = iter(range(1, 10_000))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return call


MOMENTS = [
    (Engine, "accumulate", 6),
    (Engine, "finish_step", 3),
    (checkpoints, "write_file", 3),
    (checkpoints.os, "replace", 3),
    (checkpoints.os, "replace", 4),
    (trainer.TrainingLog, "write", 3),
    (trainer.TrainingLog, "sync", 3),
    (torch.optim.AdamW, "step", 3),
]


@pytest.mark.parametrize(("owner", "name", "at"), MOMENTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, whole, owner, name, at):
    folder, recipe = whole
    monkeypatch.setattr(owner, name, dying(getattr(owner, name), at))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", **parts())
    monkeypatch.undo()
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "msr": {"code": 0.5}')  # half a line, as a kill leaves it
    train(recipe, tmp_path / "killed", **parts())
    assert_equal_runs(folder, tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == FILES
