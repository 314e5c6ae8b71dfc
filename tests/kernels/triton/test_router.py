"""The fused router against the module it replaces: logits as exact as float32 allows, the same decisions."""

import pytest
import torch

from elastic_attention import RouterConfig
from elastic_attention.kernels.triton.router import RouterWeights, route_fused
from elastic_attention.router import AttentionRouter, BoundaryPool, select_boundary

CONFIG = RouterConfig.for_head_dim(16, init_std=0.5)


def make_router(config=CONFIG, device="cpu"):
    router = AttentionRouter(config).to(device)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=config.init_std)  # biases too
    return router


def assert_same(router, keys, counts, budget=0.0):
    """Errors against float64 stay within twice those of the float32 module, and clear decisions agree."""
    exact_router = AttentionRouter(shape_of(router)).to(keys.device)
    exact_router.load_state_dict(router.state_dict())
    exact_router = exact_router.double()
    total = counts.double().sum(1).clamp(min=1)[:, None, None]
    kept = torch.where(counts[..., None, None] != 0, keys.double(), 0.0)
    pooled = (kept * counts.double()[..., None, None]).sum(1) / total
    with torch.no_grad():
        low = router.logits(pooled.float(), budget)
        exact = exact_router.router_mlp(exact_router.task_mlp(pooled))
    exact[..., 1] += budget
    routes, logits = route_fused(keys, counts, RouterWeights.from_state(router.state_dict()), budget)
    assert routes.dtype == torch.bool and logits.dtype == torch.float32
    error = (logits.double() - exact).abs()
    # The pooled key is rounded on the way, and the sums run over chunks: a few roundings of the largest value.
    bound = 2 * (low.double() - exact).abs().max() + 16 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert error.max() <= bound
    margin = exact[..., 1] - exact[..., 0]
    is_clear = margin.abs() > 2 * bound
    assert is_clear.any() and torch.equal(routes[is_clear], (margin > 0)[is_clear])
    assert torch.equal(routes, logits[..., 1] > logits[..., 0])
    return routes


def shape_of(router):
    task, route = router.task_mlp, router.router_mlp
    return RouterConfig(
        head_dim=task[0].in_features,
        task_hidden=task[0].out_features,
        task_width=task[2].out_features,
        router_hidden=route[0].out_features,
        router_width=route[2].out_features,
    )


@pytest.mark.parametrize("num_pooled", [1, 63, 64, 111, 200])
def test_equals_the_module(device, num_pooled):
    router = make_router(device=device)
    keys = torch.randn(2, num_pooled, 3, 16, device=device) * num_pooled**0.5
    counts = torch.randint(0, 3, (2, num_pooled), device=device).float()
    assert_same(router, keys, counts)


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig(head_dim=48, task_hidden=40, task_width=24, router_hidden=100, router_width=17, init_std=0.3),
        RouterConfig.for_head_dim(64, init_std=0.2),
        RouterConfig.for_head_dim(128, init_std=0.1),
    ],
    ids=["odd", "64", "128"],
)
def test_every_width(device, config):
    router = make_router(config, device)
    keys = torch.randn(1, 20, 4, config.head_dim, device=device) * 5
    assert_same(router, keys, torch.ones(1, 20, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strided_keys_of_every_dtype(device, dtype):
    """Keys as the model has them, a slice of a fused projection, and counts as a view."""
    fused = torch.randn(2, 30, 5, 3, 16, device=device).to(dtype) * 4
    counts = torch.ones(30, 2, device=device).T
    assert_same(make_router(device=device), fused[:, :, 1:4, 1], counts)


def test_what_does_not_count_may_hold_anything(device):
    router, keys = make_router(device=device), torch.randn(2, 40, 2, 16, device=device)
    counts = (torch.arange(40, device=device) % 3 > 0).float().expand(2, 40)
    clean = route_fused(keys, counts, RouterWeights.from_state(router.state_dict()))
    dirty = torch.where(counts[..., None, None] == 0, torch.nan, keys)
    for a, b in zip(clean, route_fused(dirty, counts, RouterWeights.from_state(router.state_dict())), strict=True):
        assert torch.equal(a, b)


def test_nan_keys_and_empty_sequences(device):
    """NaN leaves a head full, whatever the budget; nothing pooled counts as the zero key."""
    router, keys = make_router(device=device), torch.randn(2, 10, 2, 16, device=device)
    keys[0, 3, 1] = torch.nan
    counts = torch.ones(2, 10, device=device)
    counts[1] = 0
    routes, logits = route_fused(keys, counts, RouterWeights.from_state(router.state_dict()), 1e4)
    assert routes.tolist() == [[True, False], [True, True]]
    with torch.no_grad():
        zero = router.logits(torch.zeros(1, 2, 16, device=device), 1e4)
    torch.testing.assert_close(logits[1:], zero)


def test_budget_is_monotone(device):
    router, keys = make_router(device=device), torch.randn(4, 12, 4, 16, device=device) * 3
    counts, before = torch.ones(4, 12, device=device), torch.zeros(4, 4, dtype=torch.bool, device=device)
    _, logits = route_fused(keys, counts, RouterWeights.from_state(router.state_dict()))
    margins = (logits[..., 1] - logits[..., 0]).flatten().sort().values
    totals = []
    for budget in (-1e4, float(-margins[11] - margins[12]) / 2, float(-margins[3] - margins[4]) / 2, 1e4):
        routes = assert_same(router, keys, counts, budget)
        assert not (before & ~routes).any()
        before = routes
        totals.append(int(routes.sum()))
    assert totals == [0, 4, 12, 16]


@pytest.mark.parametrize("counts_twice", [False, True])
def test_the_slots_of_a_pool_are_pooled_alike(device, counts_twice):
    """The mean of `BoundaryPool`, overlap counted once or twice, for padded prompts of different length."""
    n, lengths = 10, (50, 15, 3)
    real = torch.arange(50, device=device)[None] >= 50 - torch.tensor(lengths, device=device)[:, None]
    keys = torch.randn(3, 50, 2, 16, device=device)
    index, rank, is_valid = select_boundary(real, torch.zeros(3, dtype=torch.long, device=device), n)
    picked = keys.gather(1, index[..., None, None].expand(-1, -1, 2, 16))
    pool = BoundaryPool(n)
    pool.update(picked, rank, is_valid)
    router, total = make_router(device=device), torch.tensor(lengths, device=device)[:, None]
    counts = is_valid * (1.0 + (counts_twice & (rank < n) & (rank >= total - n)))
    with torch.no_grad():
        expected = router.logits(pool.mean(count_overlap_twice=counts_twice))
    _, logits = route_fused(picked, counts, RouterWeights.from_state(router.state_dict()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("fault", ["counts", "width", "strides"])
def test_shapes_that_do_not_fit_are_named(device, fault):
    weights = RouterWeights.from_state(make_router(device=device).state_dict())
    keys, counts = torch.randn(1, 5, 2, 16, device=device), torch.ones(1, 5, device=device)
    if fault == "counts":
        counts = counts[:, 1:]
    elif fault == "width":
        keys = torch.randn(1, 5, 2, 32, device=device)
    else:
        keys = torch.randn(1, 5, 16, 2, device=device).transpose(2, 3)
    with pytest.raises(ValueError, match="do not fit"):
        route_fused(keys, counts, weights)


def test_fits_the_registers_of_sm_90(compile_for_hopper):
    """Nothing is spilled."""
    found = compile_for_hopper("compile_router.py")
    assert len(found) == 6
    for kernel in found:
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert kernel["registers"] <= 255 and kernel["shared"] <= 48 * 1024, kernel
