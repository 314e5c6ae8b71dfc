"""Ending a run on request: signals, a file; nothing is lost, and what it has learnt so far can be used."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch
from tiny_runs import assert_equal_runs, make_recipe, parts, read_tensors

from elastic_attention import attach
from elastic_attention.training.engine import Engine
from elastic_attention.training.trainer import train


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0), (signal.SIGTERM, 1)])
def test_a_signal_ends_the_run_after_its_step(tmp_path, monkeypatch, whole, number, workers):
    folder, recipe = whole
    data = dataclasses.replace(recipe.data, workers=workers)
    recipe = dataclasses.replace(recipe, checkpoint_every=0, data=data)
    accumulate = Engine.accumulate

    def interrupted(self, batch):
        accumulate(self, batch)
        if self.step == 1 and not calls:
            for process in multiprocessing.active_children():  # a terminal tells all of them
                subprocess.run(["kill", f"-{int(number)}", str(process.pid)], check=True)
            calls.append(os.kill(os.getpid(), number))

    calls = []
    monkeypatch.setattr(Engine, "accumulate", interrupted)
    before = signal.getsignal(number)
    assert train(recipe, tmp_path / "run", **parts())["steps"] == 2
    assert signal.getsignal(number) is before
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


@pytest.fixture
def obeyed():
    """SIGINT ends what runs, also where these tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_obeyed_at_once(tmp_path, monkeypatch, whole, obeyed):
    folder, recipe = whole
    accumulate = Engine.accumulate

    def interrupted(self, batch):
        accumulate(self, batch)
        if self.step == 1:
            for _ in range(2):  # two signals that wait together would be one
                handler = signal.getsignal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                while signal.getsignal(signal.SIGINT) == handler:
                    time.sleep(0.001)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "accumulate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", **parts())
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_file_stops_a_run_and_its_routers_can_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    found = train(make_recipe(tmp_path), tmp_path / "run", **parts())
    assert found["steps"] == 1 and found["validation"] is None and not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "stop").exists()
    handle = attach(parts()["model"], found["adapter"])
    assert found["adapter"] == str(tmp_path / "run" / "adapter-so-far") and handle.config.training["steps"] == 1
    trained = {name.removeprefix("source/"): t for name, t in read_tensors(tmp_path / "run").items()}
    for name, tensor in handle.routers.state_dict().items():
        assert torch.equal(tensor, trained[name].bfloat16().float())
    found = train(make_recipe(tmp_path), tmp_path / "run", **parts())
    assert found["is_finished"] and not (tmp_path / "run" / "adapter-so-far").exists()


def test_the_time_counts_from_the_call(tmp_path, monkeypatch):
    """Loading and tokenising are part of it, as a batch system counts."""
    from elastic_attention.training import trainer

    def slow(*arguments, **options):
        clock.append(1000.0)
        return read(*arguments, **options)

    read, clock = trainer.read_heldout, []
    monkeypatch.setattr(trainer, "read_heldout", slow)
    monkeypatch.setattr(trainer.time, "monotonic", lambda: sum(clock))
    assert train(make_recipe(tmp_path), tmp_path / "run", max_seconds=900, **parts())["steps"] == 1
