"""The sources of routes that a recipe can name: what they draw, what they are trained with, what they leave behind."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import make_recipe, parts

from elastic_attention import attach
from elastic_attention.config import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.models.checkpoint import STATIC_FILE, load_adapter, read_static_routes
from elastic_attention.router import RouteNoise, RouteSampler
from elastic_attention.training import sources
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.recipe import ObjectiveConfig, OptimizerConfig, RouteConfig
from elastic_attention.training.sources import SOURCES, build_source
from elastic_attention.training.sources.static_logits import StaticLogits
from elastic_attention.training.trainer import train
from tiny_models import attach_tiny, elastic_config

MASKS = ("static", "hard_concrete", "alpha")
FAST = OptimizerConfig(learning_rate=0.1, multiplier_learning_rate=0.3)


def recipe_for(source, folder=None, **overrides):
    return make_recipe(
        folder, routes=RouteConfig(source=source, init_std=0.5, pooled_tokens=8), optimizer=FAST, **overrides
    )


def build(source, model, **overrides):
    granularity = SOURCES[source].granularity
    handle = attach_tiny(model, config=elastic_config(model, granularity=granularity))
    return build_source(recipe_for(source, **overrides), handle), handle


def sampler(count, seed=0):
    return RouteSampler(noise=RouteNoise(seed=seed, step=0, sample_ids=torch.arange(count)), temperature=1.0)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_learns(tmp_path, source):
    train(recipe_for(source, tmp_path, steps=1), tmp_path / "run", **parts())
    moments = {n: t for n, t in load_file(tmp_path / "run" / "checkpoint.safetensors").items() if "exp_avg" in n}
    of_routes = [t for name, t in moments.items() if name.startswith("optimizer.routes") and name.endswith("exp_avg")]
    assert of_routes and all(t.abs().sum() > 0 for t in of_routes)


def test_layer_routers_become_a_layer_adapter(tmp_path):
    train(recipe_for("layer_router", tmp_path), tmp_path / "run", **parts())
    model = parts()["model"]
    handle = attach(model, tmp_path / "run" / "adapter")
    assert (
        handle.config.granularity == "layer" and handle.config.training["recipe"]["routes"]["source"] == "layer_router"
    )
    with torch.no_grad():
        model(torch.randint(1, 97, (4, 300)), use_cache=False)
    routes = handle.report()["routes"]
    assert torch.equal(routes, routes[:, :, :1].expand_as(routes))


@pytest.mark.parametrize("source", MASKS)
def test_masks_keep_exactly_the_wanted_share(tmp_path, source):
    recipe = recipe_for(source, tmp_path)
    result = train(recipe, tmp_path / "run", **parts())
    mask = read_static_routes(tmp_path / "run" / "adapter")
    assert mask.sum().item() == round(recipe.target_msr * mask.numel())
    for facts in result["validation"]["categories"].values():  # of short prompts as well, as `attach` applies it
        assert facts["msr"] == pytest.approx(mask.float().mean().item())
    with safe_open(tmp_path / "run" / "adapter" / STATIC_FILE, framework="pt") as reader:
        facts = json.loads(reader.metadata()["facts"])
    assert facts["recipe"]["routes"]["source"] == source and facts["sparse_pattern"]["local_window"] == 32
    model = parts()["model"]
    handle = attach(model, elastic_config(model))
    handle.set_routes(mask)
    with torch.no_grad():
        model(torch.randint(1, 97, (1, 300)), use_cache=False)
    assert torch.equal(handle.report()["routes"][0], mask)


@pytest.mark.parametrize(("source", "sign"), [("static", 1), ("hard_concrete", -1), ("alpha", -1)])
def test_masks_rank_heads_by_their_numbers(model, source, sign):
    found, _ = build(source, model)
    values = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.8, 0.3]])
    with torch.no_grad():
        found.values.copy_(values)
    found.msr = 0.5
    threshold = values.median()
    wanted = values > threshold if sign > 0 else values <= threshold
    assert torch.equal(found.mask(), wanted)
    assert torch.equal(found.inference(), wanted)


# Hard concrete ----------------------------------------------------------------------------------------------------


def test_hard_concrete_starts_full_and_is_the_stretched_distribution(model):
    found, _ = build("hard_concrete", model)
    assert found.values.mean().item() == pytest.approx(4.0, abs=0.02) and 0.002 < found.values.std() < 0.03
    pooled, count = torch.zeros(20_000, 2, 16), 20_000
    for log_alpha in (4.0, 0.0, -1.0):
        with torch.no_grad():
            found.values.fill_(log_alpha)
        routes = found.sample(1, pooled, sampler(count)).detach()
        assert routes.min() >= 0 and routes.max() <= 1
        # P(gate <= 0) and P(gate >= 1) of the stretched distribution in closed form; a gate of 0 is a route of 1.
        at_zero, at_one = (2 / 3 * torch.logit(torch.tensor(x / 1.2)) - log_alpha for x in (0.1, 1.1))
        assert (routes == 1).float().mean().item() == pytest.approx(at_zero.sigmoid().item(), abs=0.01)
        assert (routes == 0).float().mean().item() == pytest.approx(1 - at_one.sigmoid().item(), abs=0.01)


def test_hard_concrete_gradient_is_that_of_the_formula(model):
    found, _ = build("hard_concrete", model)
    with torch.no_grad():
        found.values.zero_()
    draw = sampler(64)
    routes = found.sample(2, torch.zeros(64, 2, 16), draw)
    routes.sum().backward()
    uniform = draw.noise.uniform(2, 2, 1)[..., 0].double()
    s = torch.sigmoid((uniform.log() - (1 - uniform).log()) * 1.5)
    inside = ((1.2 * s - 0.1) > 0) & ((1.2 * s - 0.1) < 1)
    slope = -(1.2 * 1.5 * s * (1 - s) * inside).sum(0)
    torch.testing.assert_close(found.values.grad[2].double(), slope, rtol=1e-4, atol=1e-5)
    assert not found.values.grad[:2].any()


def test_the_same_seed_starts_the_same(model):
    one, handle = build("hard_concrete", model)
    assert torch.equal(one.values, build_source(recipe_for("hard_concrete"), handle).values)
    assert not torch.equal(one.values, build_source(recipe_for("hard_concrete", seed=1), handle).values)


def test_the_target_rises_over_the_first_steps(tmp_path):
    recipe = recipe_for("hard_concrete", tmp_path, objective=ObjectiveConfig(ramp_ratio=0.5))
    train(recipe, tmp_path / "run", **parts())
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["target_msr"] for line in lines] == pytest.approx([recipe.target_msr * x for x in (0, 0.5, 1, 1)])
    assert lines[-1]["multiplier_linear"]["all"] < 0 < lines[-1]["multiplier_quadratic"]["all"]


# DuoAttention -----------------------------------------------------------------------------------------------------


def test_blend_starts_as_the_dense_model(tmp_path):
    train(recipe_for("alpha", tmp_path), tmp_path / "run", **parts())
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["distillation_loss"] == pytest.approx(0.0, abs=1e-8) and set(lines[0]["msr"].values()) == {0.0}
    assert lines[0]["loss"] == pytest.approx(0.05, abs=1e-6) and "multiplier_linear" not in lines[0]
    assert lines[-1]["distillation_loss"] > 1e-6 and all(0 < msr < 1 for msr in lines[-1]["msr"].values())
    assert not any(
        name.startswith("optimizer.multipliers") for name in load_file(tmp_path / "run/checkpoint.safetensors")
    )


def test_blend_weights_stay_between_zero_and_one(model):
    found, _ = build("alpha", model)
    with torch.no_grad():
        found.values.copy_(torch.tensor([[-0.5, 1.5], [0.25, 1.0], [0.0, 2.0]]))
    found.after_step()
    assert found.values.tolist() == [[0.0, 1.0], [0.25, 1.0], [0.0, 1.0]]
    routes = found.sample(1, torch.zeros(3, 2, 16), sampler(3))
    assert torch.equal(routes, torch.tensor([0.75, 0.0]).expand(3, 2))


# Patterns ---------------------------------------------------------------------------------------------------------

STREAMING = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
XA = XAttentionConfig(block_size=16, stride=4, threshold=0.5)
PAIRS = {
    "FA-SSA": (STREAMING, "full"),
    "FA-XA": (XA, "full"),
    "XA-SSA": (STREAMING, XA),
    "FA-TA": (TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16, num_last_queries=16), "full"),
}


@pytest.mark.parametrize("source", ["head_router", "layer_router", "alpha"])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_of_patterns_has_a_gradient(tmp_path, pair, source):
    pattern, full_pattern = PAIRS[pair]
    recipe = recipe_for(source, tmp_path, pattern=pattern, full_pattern=full_pattern)
    given = parts()
    engine = Engine(recipe, given["model"])
    (pack, *_) = PackedSteps(recipe.data, given["tokenizer"], seed=0, steps=1)[0]
    if source == "alpha":  # of full heads the distance is 0, and so is its gradient
        with torch.no_grad():
            engine.source.values.fill_(0.5)
    engine.start_step(0)
    engine.accumulate(pack)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in engine.source.parameters_to_train())
    assert sum(p.grad.abs().sum() for p in engine.source.parameters_to_train()) > 0


@pytest.mark.parametrize("pair", PAIRS)
def test_adapters_say_what_their_heads_read(tmp_path, pair):
    pattern, full_pattern = PAIRS[pair]
    recipe = recipe_for("head_router", pattern=pattern, full_pattern=full_pattern)
    engine = Engine(recipe, parts()["model"])
    engine.source.export(tmp_path, {})
    config, _ = load_adapter(tmp_path)
    assert (config.sparse_pattern, config.full_pattern) == (pattern, full_pattern)


# Free pairings, and a source of one's own -------------------------------------------------------------------------


def test_a_recipe_may_pair_freely(tmp_path):
    recipe = recipe_for(
        "head_router", tmp_path, steps=1, objective=ObjectiveConfig(loss="distillation", constraint="signed")
    )
    train(recipe, tmp_path / "run", **parts())
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert line["distillation_loss"] > 0 and line["target_msr"] == 0.0


def test_a_new_source_is_one_class_and_one_line(tmp_path, monkeypatch):
    class Halves(StaticLogits):
        name = "halves"

        def start(self, num_layers, num_heads, seed):
            return torch.full((num_layers, num_heads), 0.5)

    monkeypatch.setitem(sources.SOURCES, "halves", Halves)
    train(recipe_for("halves", tmp_path, steps=1), tmp_path / "run", **parts())
    assert "halves" in load_file(tmp_path / "run" / "adapter" / STATIC_FILE)
