"""The router: one forward for training and inference, heads decided alike, a budget that only ever makes sparser."""

import torch

from elastic_attention import RouterConfig
from elastic_attention.router import AttentionRouter, RouteNoise, RouterStack, RouteSampler

CONFIG = RouterConfig.for_head_dim(16, init_std=0.5)


def test_sizes_and_start():
    router = AttentionRouter(RouterConfig.for_head_dim(128))
    assert sum(p.numel() for p in router.parameters()) == 263_682  # Elastic Attention, section 3.1
    logits = router.logits(torch.randn(2, 8, 128))
    assert logits.shape == (2, 8, 2) and logits.abs().max() < 0.2  # undecided at the start


def test_heads_and_sequences_are_decided_one_by_one():
    router, pooled = AttentionRouter(CONFIG), torch.randn(3, 4, 16)
    together = router(pooled, layer=0)
    assert together.dtype == torch.bool and together.any() and not together.all()
    for b in range(3):
        for g in range(4):
            assert router(pooled[b : b + 1, g : g + 1], layer=0).item() == together[b, g].item()


def test_logit_one_is_sparse():
    router, pooled = AttentionRouter(CONFIG), torch.randn(5, 4, 16)
    logits = router.logits(pooled)
    assert torch.equal(router(pooled, layer=0), logits[..., 1] > logits[..., 0])


def test_budget_is_monotone_for_every_head():
    router, pooled = AttentionRouter(CONFIG), torch.randn(20, 4, 16)
    previous = torch.zeros(20, 4, dtype=torch.bool)
    counts = []
    for budget in (-1e4, -20.0, -5.0, 0.0, 5.0, 20.0, 1e4):
        routes = router(pooled, layer=0, budget=budget)
        assert not (previous & ~routes).any()
        previous = routes
        counts.append(int(routes.sum()))
    assert counts[0] == 0 and counts[-1] == 80 and len(set(counts)) >= 5


def test_training_and_inference_differ_in_the_noise_alone():
    """With the temperature's noise drowned by the logits, sampled routes are the decided ones."""
    router, pooled = AttentionRouter(CONFIG), torch.randn(50, 4, 16)
    with torch.no_grad():
        router.router_mlp[-1].weight.mul_(1e6)
        router.router_mlp[-1].bias.mul_(1e6)
    sampler = RouteSampler(noise=RouteNoise(seed=0, step=0, sample_ids=torch.arange(50)), temperature=1.0)
    sampled = router(pooled, layer=3, sampler=sampler)
    assert sampled.dtype == torch.float32 and sampled.requires_grad
    assert torch.equal(sampled.detach().bool(), router(pooled, layer=3))


def test_low_precision_keys_are_decided_in_float32():
    router, pooled = AttentionRouter(CONFIG), torch.randn(5, 4, 16).bfloat16()
    assert torch.equal(router.logits(pooled), router.logits(pooled.float()))


def test_nan_keys_leave_a_head_full():
    pooled = torch.randn(1, 2, 16)
    pooled[0, 1] = torch.nan
    assert not AttentionRouter(CONFIG)(pooled, layer=0, budget=1e4)[0, 1]


def test_state_dict_names_are_the_adapter_format():
    stack = RouterStack(CONFIG, (1, 5))
    names = [
        f"{mlp}.{i}.{kind}"
        for mlp, indices in (("task_mlp", (0, 2)), ("router_mlp", (0, 2, 4)))
        for i in indices
        for kind in ("weight", "bias")
    ]
    assert sorted(stack.state_dict()) == sorted(f"layers.{layer}.{name}" for layer in (1, 5) for name in names)
    assert stack[5] is stack.layers["5"]
