"""Losses and gradients that are no numbers: the run stops before the step, or leaves it out."""

import dataclasses

import pytest
import torch
from tiny_runs import assert_equal_runs, make_recipe, parts, read_log, read_tensors

from elastic_attention import TrainingDiverged
from elastic_attention.training.engine import Engine
from elastic_attention.training.trainer import train

HIDDEN_STATES = Engine.hidden_states


def poison(monkeypatch, steps, token=0):
    """Hidden states that are no number in these steps, of each pack from a token on."""

    def hidden_states(self, batch):
        states = HIDDEN_STATES(self, batch)
        if self.step in steps:
            states = states * torch.where(torch.arange(len(states)) >= token, float("nan"), 1.0)[:, None]
        return states

    monkeypatch.setattr(Engine, "hidden_states", hidden_states)


def test_a_loss_that_is_no_number_stops_before_its_step(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    recipe = dataclasses.replace(recipe, checkpoint_every=0)
    with monkeypatch.context() as patch:
        poison(patch, {2})
        with pytest.raises(
            TrainingDiverged, match=r"Step 3: loss nan.*no number is the loss of .*train\.jsonl:\d+.*on_nan"
        ):
            train(recipe, tmp_path / "run", **parts())
    assert len(read_log(tmp_path / "run")) == 2
    train(recipe, tmp_path / "run", **parts())  # once the cause is gone, it goes on as if nothing had been
    assert_equal_runs(folder, tmp_path / "run")


def test_steps_without_a_number_may_be_skipped(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path, on_nan="skip")
    poison(monkeypatch, {1})
    result = train(recipe, tmp_path / "run", **parts())
    lines = read_log(tmp_path / "run")
    assert ["skipped" in line for line in lines] == [False, True, False, False] and result["skipped_steps"] == 1
    assert lines[1]["loss"] is None and lines[1]["gradient_norm"] is None and lines[1]["temperature"] > 0
    assert lines[1]["skipped"]["count"] == 1 and "train.jsonl:" in lines[1]["skipped"]["reason"]
    assert all(torch.isfinite(t).all() for t in read_tensors(tmp_path / "run").values())
    poison(monkeypatch, {0, 1, 2, 3})
    with pytest.raises(TrainingDiverged, match="Step 3"):
        train(recipe, tmp_path / "other", **parts())


def test_one_sample_without_a_number_is_told_from_the_others(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path, on_nan="skip", packs={"tokens": 2000, "per_step": 1, "lookahead": 24})
    poison(monkeypatch, {1}, token=1500)
    train(recipe, tmp_path / "run", **parts())
    line = read_log(tmp_path / "run")[1]
    assert 1 <= line["skipped"]["reason"].count("train.jsonl:") < 5 and line["loss"] is None
    assert None in line["lm_loss_by_category"].values()


def test_steps_that_were_skipped_are_counted_over_a_resume(tmp_path, monkeypatch):
    """Two in a row before a stop and one after it are three in a row."""
    recipe = make_recipe(tmp_path, on_nan="skip", steps=6)
    poison(monkeypatch, {1, 2, 4})
    train(recipe, tmp_path / "whole", **parts())
    for _ in range(4):
        stopped = train(recipe, tmp_path / "run", max_seconds=0, **parts())
    assert (stopped["steps"], stopped["skipped_steps"]) == (4, 2)
    assert train(recipe, tmp_path / "run", **parts())["skipped_steps"] == 3
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    poison(monkeypatch, {1, 2, 3})
    for _ in range(3):
        train(recipe, tmp_path / "other", max_seconds=0, **parts())
    with pytest.raises(TrainingDiverged, match="Step 4"):
        train(recipe, tmp_path / "other", **parts())
