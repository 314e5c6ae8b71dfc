"""Routers that learn on standardised inputs: what they read, what they leave behind, and that a run goes on with it."""

import dataclasses

import pytest
import torch
from tiny_runs import assert_equal_runs, make_recipe, parts, read_tensors
from torch import nn

from elastic_attention import attach
from elastic_attention.errors import RecipeError
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.fitted_inputs import fit_inputs
from elastic_attention.training.recipe import RouteConfig
from elastic_attention.training.sources.input_scaling import InputScaling
from elastic_attention.training.trainer import train

BIAS = torch.linspace(-90, 90, 16)


def fit(inputs):
    """Inputs (L, S, G, D) -> a scaling that knows their moments."""
    inputs = inputs.double()
    flat, scaling = inputs.flatten(1, 2), InputScaling(len(inputs), inputs.shape[-1], inputs.device)
    scaling.fit(inputs.shape[1], inputs.sum(1), flat.mT @ flat)
    return scaling


def test_what_is_left_has_mean_0_and_no_direction_is_large():
    """Heads differ by far more than samples, and there are fewer samples than dimensions."""
    heads = torch.stack([BIAS, BIAS.flip(0) / 3])
    inputs = heads + 0.1 * torch.randn(1, 12, 2, 16, generator=torch.Generator().manual_seed(0))
    scaled = fit(inputs)(0, inputs[0])
    assert scaled.mean((0, 1)).abs().max() < 1e-3
    centered = scaled - scaled.mean(0)  # within a head
    assert scaled.abs().max() < 8 and centered.std(0).mean() > 0.4


def test_a_folded_layer_gives_the_same_for_inputs_as_they_are():
    inputs = BIAS + torch.randn(2, 20, 2, 16, generator=torch.Generator().manual_seed(1))
    scaling, layer = fit(inputs), nn.Linear(16, 8)
    wanted = layer(scaling(1, inputs[1]))
    scaling.fold(1, layer)
    torch.testing.assert_close(layer(inputs[1]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["head_router", "layer_router"])
def test_a_run_exports_what_it_validates_and_goes_on_bit_for_bit(tmp_path, source):
    recipe = make_recipe(tmp_path, routes=RouteConfig(source=source, init_std=0.5, pooled_tokens=8, standardize=True))
    train(recipe, tmp_path / "whole", **parts())
    train(recipe, tmp_path / "cut", max_seconds=0, **parts())
    train(recipe, tmp_path / "cut", **parts())
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    state = read_tensors(tmp_path / "whole")
    assert any("input_matrix" in name for name in state)
    model = parts()["model"]
    engine = Engine(recipe, model)
    with pytest.raises(RecipeError, match="fit_inputs"):
        engine.source.inference()(0, torch.zeros(1, 2, 16))
    engine.source.load({n.split("source/")[1]: t for n, t in state.items() if "source/" in n})
    pooled = torch.randn(50, 1 if source == "layer_router" else 2, 16)
    trained = engine.source.inference()(1, pooled)
    engine.close()
    shipped = attach(model, tmp_path / "whole" / "adapter").decide(1, pooled)
    assert (shipped == trained).float().mean() > 0.97  # the other layers are kept in bfloat16


def test_ranks_fit_what_one_process_fits(tmp_path):
    """Their sums are those of all packs."""
    recipe = make_recipe(tmp_path, routes=RouteConfig(pooled_tokens=8, standardize=True))
    tokenizer = parts()["tokenizer"]
    one, *halves = (Engine(recipe, parts()["model"]) for _ in range(3))
    fit_inputs(one, PackedSteps(recipe.data, tokenizer, seed=0, steps=4))
    moments = []
    for rank, engine in enumerate(halves):
        steps = PackedSteps(recipe.data, tokenizer, seed=0, steps=4, rank=rank, world_size=2)
        engine.source.scaling.fit = lambda *found: moments.append(found)
        fit_inputs(engine, steps)
    together = InputScaling(*one.source.scaling.shift.shape, torch.device("cpu"))
    together.fit(*(a + b for a, b in zip(*moments, strict=True)))
    torch.testing.assert_close(together.shift, one.source.scaling.shift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.matrix, one.source.scaling.matrix, rtol=1e-3, atol=1e-3)


def test_a_run_without_it_is_the_run_it_was(tmp_path):
    from elastic_attention.training.identity import identify_run

    recipe = make_recipe(tmp_path)
    assert "standardize" not in identify_run(recipe, "").recipe["routes"]
    other = dataclasses.replace(recipe, routes=dataclasses.replace(recipe.routes, standardize=True))
    assert identify_run(other, "").digest != identify_run(recipe, "").digest
