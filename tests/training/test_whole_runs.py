"""Whole runs: what they leave behind, and that neither cache, workers nor a pause change it."""

import dataclasses
import shutil

import pytest
import torch
from tiny_runs import assert_equal_runs, make_recipe, parts, read_log

from elastic_attention import attach
from elastic_attention.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from elastic_attention.training.recipe import (
    DataConfig,
    Interval,
    ObjectiveConfig,
    PackConfig,
    RouteConfig,
    TemperatureConfig,
)
from elastic_attention.training.sources import SOURCES
from elastic_attention.training.trainer import train


def test_run_learns_exports_and_loads(tmp_path):
    recipe = make_recipe(tmp_path, validate_every=2, temperature=TemperatureConfig(ratio=0.5, noise_end=0.5))
    result = train(recipe, tmp_path / "run", **parts())
    assert result["is_finished"] and result["steps"] == 4
    assert result["data"]["categories"]["code"]["samples"] == 8 and result["tokens"] > 1000
    assert set(result["validation"]["categories"]) == set(recipe.intervals)
    facts = result["validation"]["categories"]["code"]
    assert facts["samples"] == 2 and (facts["low"], facts["high"]) == (0.8, 1.0)
    assert facts["outside"] == pytest.approx(max(0.8 - facts["msr"], 0.0))
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {name for line in lines for name in line["msr"]} == set(recipe.intervals)
    assert [("validation" in line) for line in lines] == [False, True, False, False]
    assert max(lines[-1]["multiplier_linear"].values()) > 0 and lines[-1]["regularization"] > 0
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["lm_loss"] + lines[-1]["regularization"], rel=1e-5)
    assert [line["noise_scale"] for line in lines] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    handle = attach(parts()["model"], tmp_path / "run" / "adapter")
    assert handle.config.training["recipe"]["steps"] == 4
    assert handle.config.router.pooled_tokens == 8


def test_the_model_comes_back_untouched(tmp_path):
    given = parts()
    ids = torch.randint(1, 97, (1, 60))
    before = given["model"](ids).logits
    weights = {name: p.clone() for name, p in given["model"].state_dict().items()}
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **given)
    assert torch.equal(given["model"](ids).logits, before)
    assert all(torch.equal(p, weights[name]) for name, p in given["model"].state_dict().items())
    assert all(p.requires_grad for p in given["model"].parameters())


def test_the_place_of_the_cache_and_the_number_of_workers_change_nothing(tmp_path, whole):
    recipe = make_recipe(tmp_path, checkpoint_every=2)
    packs = dataclasses.replace(recipe.data.packs, cache=str(tmp_path / "other cache"))
    other = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=1, packs=packs))
    first = train(dataclasses.replace(recipe, validate_every=0), tmp_path / "two", max_seconds=0, **parts())
    assert first["steps"] == 1
    train(other, tmp_path / "two", **parts())
    assert_equal_runs(whole[0], tmp_path / "two")


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "head_router"])
def test_every_source_resumes_bit_equal(tmp_path, source):
    objective = ObjectiveConfig(constraint="interval") if source == "static" else ObjectiveConfig()
    routes = RouteConfig(source=source, init_std=0.5, pooled_tokens=8)
    recipe = make_recipe(tmp_path, routes=routes, objective=objective, steps=2)
    train(recipe, tmp_path / "whole", **parts())
    assert train(recipe, tmp_path / "cut", max_seconds=0, **parts())["steps"] == 1
    assert train(recipe, tmp_path / "cut", **parts())["is_finished"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_not_trained_again(tmp_path, whole):
    folder, recipe = whole
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")  # as a kill between the last step and the export leaves it
    again = train(recipe, tmp_path / "run", **parts())
    assert again["tokens"] == 0 and set(again["validation"]["categories"]) == set(recipe.intervals)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "run" / "adapter" / name).read_bytes() == (folder / "adapter" / name).read_bytes()


def test_a_run_without_heldout_files_says_so(tmp_path):
    result = train(make_recipe(tmp_path, steps=1, packs={"heldout_files": ()}), tmp_path / "run", **parts())
    assert result["validation"] is None and result["is_finished"]


def test_generated_samples_train(tmp_path):
    packs = PackConfig(samples=6, tokens=1400, per_step=1, cache=str(tmp_path / "cache"))
    recipe = make_recipe(
        steps=2,
        data=DataConfig(kinds=("needle", "classes"), lengths=(512,), packs=packs),
        intervals={"sensitive": Interval(low=0.4, high=0.5), "robust": Interval(low=0.8, high=1.0)},
        validation_samples=1,
    )
    result = train(recipe, tmp_path / "run", **parts())
    assert {name: facts["samples"] for name, facts in result["validation"]["tasks"].items()} == {
        "needle": 1, "classes": 1,
    }  # fmt: skip
