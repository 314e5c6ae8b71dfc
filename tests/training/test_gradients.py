"""Gradients of a whole step: against finite differences where the loss is smooth, and written out where it is not."""

import pytest
import torch
from tiny_runs import make_recipe, parts

from elastic_attention.router import AttentionRouter, RouteNoise
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.recipe import ObjectiveConfig, RouteConfig

MULTIPLIER = 0.7


def open_step(folder, **overrides):
    """An engine in float64 with multipliers at work, and the packs of a step."""
    recipe = make_recipe(folder, **overrides)
    given = parts()
    engine = Engine(recipe, given["model"].double())
    engine._output = given["model"].lm_head.weight, 1.0  # the check of a model's logits is one in float32
    with torch.no_grad():
        for parameter in engine.constraint.parameters():
            parameter.fill_(MULTIPLIER)
    engine.start_step(1)
    return engine, PackedSteps(recipe.data, given["tokenizer"], seed=0, steps=2)[1]


def total_loss(engine, packs):
    """The loss of the step without a gradient."""
    with torch.no_grad():
        losses = []
        for pack in packs:
            with engine.sampling(pack) as record:
                losses.append(engine.compute_loss(pack, record)[0].double())
        return float(sum(losses))


@pytest.mark.parametrize("loss", ["lm", "distillation"])
def test_blend_weights_against_finite_differences(tmp_path, loss):
    """Nothing is drawn and nothing is rounded, so the gradient of the step is that of its loss."""
    objective = ObjectiveConfig(loss=loss, constraint="interval")
    engine, packs = open_step(tmp_path, routes=RouteConfig(source="alpha", pooled_tokens=8), objective=objective)
    values = engine.source.values
    start = torch.tensor([[0.15, 0.35], [0.55, 0.75], [0.5, 0.95]])
    with torch.no_grad():
        values.copy_(start)
    for pack in packs:
        engine.accumulate(pack)
    for place in ((0, 0), (1, 1), (2, 0)):
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                values.copy_(start)[place] += sign * 1e-2
            slopes.append(sign * total_loss(engine, packs))
        assert values.grad[place].item() == pytest.approx(sum(slopes) / 2e-2, rel=5e-3, abs=1e-5)
    assert values.grad.abs().min() > 1e-3


def test_multipliers_get_the_distances(tmp_path):
    """Eq. 9: the gradient of a multiplier is the weighted distance of its category, squared for the second."""
    engine, packs = open_step(tmp_path)
    for pack in packs:
        engine.accumulate(pack)
    interval, wanted = engine.recipe.intervals, {}
    for pack in packs:
        with engine.sampling(pack) as record:
            msr = engine.compute_loss(pack, record)[1]["msr"]
        for name, share, weight in zip(pack.categories, msr.tolist(), pack.weights.tolist(), strict=True):
            distance = max(interval[name].low - share, share - interval[name].high, 0.0)
            for power, sums in enumerate((wanted.setdefault(1, {}), wanted.setdefault(2, {})), 1):
                sums[name] = sums.get(name, 0.0) + weight * distance**power
    for power, parameter in ((1, engine.constraint.multiplier_linear), (2, engine.constraint.multiplier_quadratic)):
        found = dict(zip(engine.constraint.categories, parameter.grad.tolist(), strict=True))
        assert {n: v for n, v in found.items() if n in wanted[power]} == pytest.approx(wanted[power], rel=1e-5)
    assert max(wanted[1].values()) > 0.1


def test_router_gradient_is_written_out(tmp_path, monkeypatch):
    """dL/dlogit = dL/dz * y (1 - y) / temperature, y the soft sparse probability under the noise of the sample."""
    engine, packs = open_step(tmp_path, routes=RouteConfig(init_std=0.2, pooled_tokens=8))
    pack, drawn = packs[0], {}

    def forward(self, pooled, *, layer, budget=0.0, sampler=None):
        logits = self.logits(pooled, budget)
        drawn[layer] = logits, sampler(logits, layer)
        for tensor in drawn[layer]:
            tensor.retain_grad()
        return drawn[layer][1]

    monkeypatch.setattr(AttentionRouter, "forward", forward)
    engine.accumulate(pack)
    for layer, (logits, routes) in drawn.items():
        uniform = RouteNoise(seed=0, step=1, sample_ids=pack.sample_ids).uniform(layer, 2).double()
        gumbel = -torch.log(-torch.log(uniform + 1e-8) + 1e-8)
        y = ((logits.detach().double() + gumbel) / engine.temperature).softmax(-1)[..., 1]
        assert torch.equal(routes.round(), (y > 0.5).float())
        slope = routes.grad.double() * y * (1 - y) / engine.temperature
        torch.testing.assert_close(logits.grad.double(), torch.stack([-slope, slope], -1), rtol=1e-4, atol=1e-9)
        assert slope.abs().max() > 1e-3
