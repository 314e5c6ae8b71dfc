"""The layer router: one decision from the mean query, the sizes of the paper, the same forward as the head router."""

import pytest
import torch
from torch import nn

from elastic_attention import RouterConfig
from elastic_attention.router import LayerRouter, RouteNoise, RouterStack, RouteSampler, average_heads

CONFIG = RouterConfig.for_head_dim(16, granularity="layer", init_std=0.5)


def test_sizes_are_those_of_flux_attention():
    router = LayerRouter(RouterConfig.for_head_dim(128, granularity="layer"))
    assert sum(p.numel() for p in router.parameters()) == 592_002
    shapes = {name: tuple(p.shape) for name, p in router.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "task_mlp.0.weight": (1024, 128),
        "task_mlp.2.weight": (256, 1024),
        "router_mlp.0.weight": (512, 256),
        "router_mlp.2.weight": (128, 512),
        "router_mlp.4.weight": (2, 128),
    }
    assert sum(isinstance(m, nn.SiLU) for m in router.modules()) == 3


def test_one_decision_from_the_mean_over_the_heads():
    router, pooled = LayerRouter(CONFIG), torch.randn(40, 6, 16)
    routes = router(pooled, layer=0)
    assert routes.shape == (40, 1) and routes.dtype == torch.bool and routes.any() and not routes.all()
    mean = pooled.mean(1)
    logits = router.router_mlp(router.task_mlp(mean))
    assert torch.equal(routes[:, 0], logits[:, 1] > logits[:, 0])
    assert torch.equal(routes, router(average_heads(pooled, dim=1), layer=0))  # averaged before or here


def test_low_precision_is_averaged_in_float32():
    pooled = torch.randn(3, 64, 16).bfloat16()
    assert average_heads(pooled, dim=1).dtype == torch.float32
    torch.testing.assert_close(average_heads(pooled, dim=1), pooled.float().mean(1, keepdim=True), rtol=0, atol=0)


def test_sampling_draws_once_a_layer_and_is_differentiable():
    router, pooled = LayerRouter(CONFIG), torch.randn(30, 6, 16)
    sampler = RouteSampler(noise=RouteNoise(seed=0, step=0, sample_ids=torch.arange(30)), temperature=1.0)
    sampled = router(pooled, layer=2, sampler=sampler)
    assert sampled.shape == (30, 1) and set(sampled.tolist()[i][0] for i in range(30)) == {0.0, 1.0}
    sampled.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in router.parameters())


def test_budget_moves_every_layer_one_way():
    router, pooled = LayerRouter(CONFIG), torch.randn(60, 6, 16)
    counts = [int(router(pooled, layer=0, budget=b).sum()) for b in (-1e4, -3.0, 0.0, 3.0, 1e4)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 60 and len(set(counts)) >= 4


def test_both_kinds_have_the_same_names():
    head, layer = RouterStack(CONFIG, (0, 3)), RouterStack(CONFIG, (0, 3), "layer")
    assert list(head.state_dict()) == list(layer.state_dict())
    assert isinstance(layer[3], LayerRouter) and not isinstance(head[3], LayerRouter)


def test_unknown_granularity():
    with pytest.raises(ValueError, match="granularity='token'.*'layer'"):
        RouterConfig.for_head_dim(16, granularity="token")
