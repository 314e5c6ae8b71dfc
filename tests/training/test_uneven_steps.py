"""Steps at the edge of what data can be: one short sample, categories that are not there, samples that come twice."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_runs import INTERVALS, make_recipe, parts, read_log, read_tensors

from elastic_attention.training.data.batch import PackedSample, join_samples
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.trainer import train
from made_rows import make_row, write_rows


def recipe_of(folder, rows, **overrides):
    file = write_rows(folder / "few.jsonl", rows)
    packs = {"files": (str(file),), "heldout_files": (), **overrides.pop("packs", {})}
    return make_recipe(folder, packs=packs, **overrides)


def test_one_short_sample_is_a_step(tmp_path):
    row = make_row(0, context="", question="a", answer="b", metadata={"is_chat": False})
    recipe = recipe_of(tmp_path, [row], steps=2, packs={"per_step": 1})
    assert train(recipe, tmp_path / "run", **parts())["tokens"] == 2 * 2
    for line in read_log(tmp_path / "run"):
        assert set(line["msr"]) == {"code"} and line["loss"] > 0 and line["gradient_norm"] < float("inf")


def test_categories_that_are_absent_change_nothing(tmp_path):
    """A step without a category says nothing of it, and a multiplier without a sample stays where it is."""
    rows = [make_row(i, words=150, category=("code", "single_qa")[i == 3]) for i in range(4)]
    recipe = recipe_of(tmp_path, rows, steps=8, packs={"per_step": 1, "tokens": 1000, "lookahead": 1})
    train(recipe, tmp_path / "run", **parts())
    lines = read_log(tmp_path / "run")
    assert {tuple(line["msr"]) for line in lines} == {("code",), ("single_qa",)}
    for line in lines:
        assert set(line["multiplier_linear"]) == set(INTERVALS) and line["multiplier_linear"]["few_shot"] == 0
        (share,) = line["lm_loss_by_category"].values()
        assert line["lm_loss"] == pytest.approx(share)
    assert lines[-1]["multiplier_linear"]["code"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(tmp_path / "run").values())


def test_a_step_may_hold_a_sample_more_than_once(tmp_path):
    """Fewer samples than a step takes: the epochs run into each other, the shares still make one."""
    recipe = recipe_of(tmp_path, [make_row(i, words=150) for i in range(3)], packs={"per_step": 8, "tokens": 1000})
    data = PackedSteps(recipe.data, parts()["tokenizer"], seed=0, steps=1)
    ids = [i for pack in data[0] for i in pack.sample_ids.tolist()]
    assert sorted(set(ids)) == [0, 1, 2] and len(ids) == 8
    assert sum(float(pack.weights.sum()) for pack in data[0]) == pytest.approx(1.0)
    assert train(dataclasses.replace(recipe, steps=1), tmp_path / "run", **parts())["is_finished"]


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_a_sample_without_an_answer_weighs_nothing(tmp_path, loss_on):
    """Records cannot be so; a pack of one's own may be. Its loss is 0, not a division by 0."""
    recipe = make_recipe(tmp_path)
    engine = Engine(recipe, parts()["model"])
    length = 40 if loss_on == "response" else 1
    sample = PackedSample(
        tokens=np.arange(4, 4 + length), context=(0, length), question=(length, length), response=(length, length),
        sample_id=0, category="code", task="code", weight=0.5,
    )  # fmt: skip
    other = dataclasses.replace(sample, tokens=np.arange(4, 64), response=(50, 60), sample_id=1)
    engine.start_step(0)
    engine.accumulate(join_samples([sample, other], loss_on=loss_on))
    values = engine.finish_step()
    alone = Engine(recipe, parts()["model"])
    alone.start_step(0)
    alone.accumulate(join_samples([other], loss_on=loss_on))
    assert values["loss"] == pytest.approx(alone.finish_step()["loss"], rel=1e-5)
    assert "skipped" not in values
