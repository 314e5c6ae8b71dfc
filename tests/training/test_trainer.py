import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import make_recipe, parts

from elastic_attention import CheckpointError, attach
from elastic_attention.training import trainer
from elastic_attention.training.checkpoints import FILE
from elastic_attention.training.recipe import RouteConfig
from elastic_attention.training.sources import SOURCES
from elastic_attention.training.trainer import train


def tensors(folder):
    return load_file(folder / FILE)


def assert_equal_runs(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


def test_run_learns_exports_and_loads(tmp_path):
    result = train(make_recipe(), tmp_path / "run", **parts())
    assert result["is_finished"] and result["steps"] == 4
    assert set(result["validation"]) == {"needle", "classes"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]["msr"]) == {"sensitive", "robust"}
    assert max(lines[-1]["multiplier_linear"].values()) > 0
    model = parts()["model"]
    handle = attach(model, tmp_path / "run" / "adapter")
    assert handle.config.training["recipe"]["steps"] == 4
    assert handle.config.router.pooled_tokens == 8


def test_the_model_comes_back_untouched(tmp_path):
    given = parts()
    ids = torch.randint(1, 97, (1, 60))
    before = given["model"](ids).logits
    weights = {name: p.clone() for name, p in given["model"].state_dict().items()}
    train(make_recipe(steps=1), tmp_path / "run", **given)
    assert torch.equal(given["model"](ids).logits, before)
    assert all(torch.equal(p, weights[name]) for name, p in given["model"].state_dict().items())


@pytest.mark.parametrize("source", SOURCES)
def test_killed_run_resumes_bit_equal(tmp_path, monkeypatch, source):
    recipe = make_recipe(routes=RouteConfig(source=source, init_std=0.5, pooled_tokens=8), checkpoint_every=2)
    train(recipe, tmp_path / "whole", **parts())
    step = trainer._Run._step

    def die(self, number, batches):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, batches)

    monkeypatch.setattr(trainer._Run, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", **parts())
    monkeypatch.setattr(trainer._Run, "_step", step)
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 0.')  # half a line, as a kill leaves it
    train(recipe, tmp_path / "killed", **parts())
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_early_stop_goes_on_later(tmp_path):
    train(make_recipe(), tmp_path / "whole", **parts())
    first = train(make_recipe(), tmp_path / "cut", max_seconds=0, **parts())
    assert not first["is_finished"] and first["steps"] == 1
    assert train(make_recipe(), tmp_path / "cut", **parts())["is_finished"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    recipe = make_recipe(steps=1)
    split = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, rows_per_forward=1))
    train(recipe, tmp_path / "whole", **parts())
    train(split, tmp_path / "split", **parts())
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "split")
    first_moments = [name for name in a if name.endswith("exp_avg")]
    assert first_moments
    for name in first_moments:  # the gradient, scaled
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-7)


def test_checkpoint_of_another_recipe(tmp_path):
    train(make_recipe(steps=1), tmp_path / "run", **parts())
    with pytest.raises(CheckpointError, match="another recipe"):
        train(make_recipe(steps=1, seed=5), tmp_path / "run", **parts())


def test_damaged_checkpoint(tmp_path):
    train(make_recipe(steps=1), tmp_path / "run", **parts())
    path = tmp_path / "run" / FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        train(make_recipe(steps=1), tmp_path / "run", **parts())


def test_static_mask_has_the_wanted_share(tmp_path):
    recipe = make_recipe(routes=RouteConfig(source="static"))
    result = train(recipe, tmp_path / "run", **parts())
    mask = load_file(tmp_path / "run" / "adapter" / "static_routes.safetensors")["head_is_sparse"]
    assert mask.sum().item() == round(0.675 * mask.numel())
    assert result["validation"]["needle"]["msr"] == pytest.approx(mask.float().mean().item())
