"""Sampling of routes: noise that belongs to the sample, and the straight-through gradient."""

import math

import pytest
import torch

from elastic_attention.router import RouteNoise, RouteSampler


def noise(ids, *, seed=1, step=2):
    return RouteNoise(seed=seed, step=step, sample_ids=torch.tensor(ids))


def test_noise_belongs_to_the_sample_not_to_its_place():
    together = noise([5, 9, 7]).uniform(3, 4)
    assert torch.equal(together, noise([7, 5, 9]).uniform(3, 4)[[1, 2, 0]])
    assert torch.equal(together[1:2], noise([9]).uniform(3, 4))
    assert torch.equal(together, noise([5, 9, 7]).uniform(3, 4))
    # A KV head has its noise however many heads this rank holds.
    assert torch.equal(together[:, :2], noise([5, 9, 7]).uniform(3, 2))


def test_layers_that_are_drawn_together_have_their_own_noise():
    ids = torch.tensor([5, 9, 7])
    together = RouteNoise(seed=1, step=2, sample_ids=ids, num_layers=4)
    for layer in (0, 3, 4, 9):
        for classes in (1, 2):
            assert torch.equal(together.uniform(layer, 3, classes), noise([5, 9, 7]).uniform(layer, 3, classes))


def test_noise_changes_with_every_part_of_its_identity():
    base = noise([5]).uniform(3, 4)
    others = [noise([5], seed=2).uniform(3, 4), noise([5], step=3).uniform(3, 4), noise([5]).uniform(2, 4)]
    for other in [*others, noise([6]).uniform(3, 4)]:
        assert not (base == other).any()
    assert len(set(base.flatten().tolist())) == 8


def test_noise_is_uniform_and_uncorrelated():
    u = noise(list(range(4000))).uniform(0, 4).double()
    assert u.min() >= 0 and u.max() < 1
    n = u.numel()
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)
    histogram = torch.histc(u, bins=20, min=0, max=1)
    chi_square = ((histogram - n / 20) ** 2 / (n / 20)).sum()
    assert chi_square < 50  # 19 degrees of freedom: exceeded once in 10,000
    steps = torch.stack([noise([3], step=s).uniform(0, 1).flatten() for s in range(3000)]).double()
    for columns in (u.flatten(1).T, steps.T):
        correlation = torch.corrcoef(columns) - torch.eye(len(columns))
        assert correlation.abs().max() < 5 / math.sqrt(columns.shape[1])


@pytest.mark.parametrize("logit", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_gumbel_argmax_follows_the_softmax_of_the_logits(logit, temperature):
    """Also at logit 0, where the released one-class variant gives 0.632; and whatever the temperature."""
    sampler = RouteSampler(noise=noise(list(range(20_000))), temperature=temperature)
    logits = torch.tensor([0.0, logit]).expand(20_000, 2, 2)
    p = 1 / (1 + math.exp(-logit))
    assert abs(sampler(logits, 0).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / 40_000)


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_less_noise_draws_as_larger_logits_would(scale):
    sampler = RouteSampler(noise=noise(list(range(20_000))), temperature=1.0, noise_scale=scale)
    p = 1 / (1 + math.exp(-0.1 / scale))
    drawn = sampler(torch.tensor([0.0, 0.1]).expand(20_000, 2, 2), 0)
    assert abs(drawn.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / 40_000)


def test_without_noise_routes_are_those_of_inference():
    sampler = RouteSampler(noise=noise(list(range(50))), temperature=1.0, noise_scale=0.0)
    logits = torch.randn(50, 3, 2, requires_grad=True)
    routes = sampler(logits, 0)
    assert torch.equal(routes.detach().bool(), logits[..., 1] > logits[..., 0])
    (gradient,) = torch.autograd.grad(routes.sum(), logits)
    assert gradient.abs().min() > 0


def test_straight_through_gradient_against_enumeration():
    """z = one_hot(argmax) + y - stop(y): the value is hard, the gradient is that of the softmax, written out."""
    logits = torch.randn(6, 3, 2, requires_grad=True)
    temperature, source = 0.8, noise(list(range(6)))
    routes = RouteSampler(noise=source, temperature=temperature)(logits, 1)
    assert set(routes.flatten().tolist()) == {0.0, 1.0} and routes.dtype == torch.float32
    upstream = torch.randn(6, 3)
    (found,) = torch.autograd.grad(routes, logits, upstream)
    uniform = source.uniform(1, 3)
    for b in range(6):
        for g in range(3):
            scores = [
                (logits[b, g, c].item() - math.log(-math.log(uniform[b, g, c].item() + 1e-8) + 1e-8)) / temperature
                for c in (0, 1)
            ]
            y = 1 / (1 + math.exp(scores[0] - scores[1]))
            assert routes[b, g].item() == float(scores[1] > scores[0])
            wanted = upstream[b, g].item() * y * (1 - y) / temperature
            assert found[b, g, 1].item() == pytest.approx(wanted, rel=1e-3, abs=1e-6)
            assert found[b, g, 0].item() == pytest.approx(-wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature="):
        RouteSampler(noise=noise([1]), temperature=temperature)


@pytest.mark.parametrize("scale", [-0.1, 1.1, math.nan])
def test_noise_scale_must_be_a_ratio(scale):
    with pytest.raises(ValueError, match="noise_scale="):
        RouteSampler(noise=noise([1]), temperature=1.0, noise_scale=scale)


def test_extreme_noise_stays_finite():
    class Edge(RouteNoise):
        def uniform(self, layer, num_kv_heads, num_classes=2):
            return torch.tensor([[[0.0, 1 - 2**-24]]])

    sampler = RouteSampler(noise=Edge(seed=0, step=0, sample_ids=torch.tensor([0])), temperature=1.0)
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    routes = sampler(logits, 0)
    (grad,) = torch.autograd.grad(routes.sum(), logits)
    assert bool(torch.isfinite(routes).all()) and bool(torch.isfinite(grad).all())
