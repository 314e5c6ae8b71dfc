"""Two processes do what one does: the same loss, gradients and held-out measures, however the work is shared."""

import dataclasses
import math

import pytest
import torch
from rank_jobs import load_gradients, steps_alone, take_steps
from tiny_runs import make_recipe, parts

from elastic_attention.config import TriangleConfig, XAttentionConfig
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.recipe import OptimizerConfig, RouteConfig
from tiny_models import make_model

# Routers compute in float32 and their gradients are sums of thousands of terms of both signs: rounding of a gradient is
# some multiple of eps times the largest one, here up to a few hundred.
TOLERANCE = 1e-4


def wide_parts():
    """As `parts`, with heads enough that processes have several and deal them out."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return parts() | {"model": make_model(vocab_size=600, max_position_embeddings=4096, **heads)}


def make_recipes(folder):
    """Name -> a run; the names say what is shared."""
    recipe = make_recipe(folder, optimizer=OptimizerConfig(max_grad_norm=1e9))
    shared = ParallelConfig(sequence=2)
    layers = RouteConfig(source="layer_router", init_std=0.5, pooled_tokens=8, standardize=True)
    alpha = RouteConfig(source="alpha")
    return {
        "packs": dataclasses.replace(recipe, parallel=ParallelConfig(sequence=1, weights=2)),
        "tokens": dataclasses.replace(recipe, parallel=shared, recompute_layers=True),
        "tokens_and_weights": dataclasses.replace(recipe, parallel=ParallelConfig(sequence=2, weights=0)),
        "triangle": dataclasses.replace(
            recipe, parallel=shared, pattern=TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16)
        ),
        "xattention": dataclasses.replace(
            recipe,
            parallel=shared,
            pattern=XAttentionConfig(block_size=64, stride=8),
            recompute_layers=True,
        ),
        "layers": dataclasses.replace(recipe, parallel=shared, routes=layers),
        "alpha": dataclasses.replace(recipe, parallel=shared, routes=alpha),
    }


NAMES = ("packs", "tokens", "tokens_and_weights", "triangle", "xattention", "layers", "alpha")


@pytest.fixture(scope="module")
def steps(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    recipes = make_recipes(folder)
    assert tuple(recipes) == NAMES
    alone = steps_alone(recipes, wide_parts)
    shared = pair.run(take_steps, folder, recipes, wide_parts)
    return alone, shared, {name: load_gradients(folder, name) for name in recipes}


def assert_close(one, other):
    """Equal nested dictionaries but for rounding."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_close(value, other[key])
        else:
            assert math.isclose(value, other[key], rel_tol=TOLERANCE, abs_tol=TOLERANCE), key


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_log_are_those_of_one_process(steps, name):
    alone, shared, _ = steps
    values, _ = alone[name]
    assert_close(values["values"], shared[0][name]["values"])
    assert shared[0][name]["values"] == shared[1][name]["values"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_one_process(steps, name):
    alone, _, gradients = steps
    _, wanted = alone[name]
    for rank in gradients[name]:
        assert rank.keys() == wanted.keys()
        largest = max(float(g.abs().max()) for g in wanted.values())
        assert largest > 0
        for key, gradient in wanted.items():
            torch.testing.assert_close(rank[key], gradient, rtol=TOLERANCE, atol=TOLERANCE * largest)
    assert all(torch.equal(a, b) for a, b in zip(*(g.values() for g in gradients[name]), strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "packs"])
def test_processes_that_share_a_pack_measure_it_like_one(steps, name):
    alone, shared, _ = steps
    for key, wanted in alone[name][0]["measured"].items():
        for rank in shared:
            assert rank[name]["measured"][key] == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
