"""A rotation taken back gives the key as it was."""

import pytest
import torch

from elastic_attention.config import RouterConfig
from elastic_attention.router import AttentionRouter
from elastic_attention.serving.rotation import boundary_positions, decide_routes, undo_rotation


def rotate(keys, cos_sin, is_interleaved):
    """RoPE as engines apply it."""
    half = cos_sin.shape[-1] // 2
    cos, sin = (part[..., None, :] for part in cos_sin.split(half, dim=-1))
    turned, rest = keys[..., : 2 * half], keys[..., 2 * half :]
    if is_interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    else:
        first, second = turned.split(half, dim=-1)
        pairs = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([pairs, rest], dim=-1)


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("rotary", [16, 8])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_round_trip(is_interleaved, rotary, scale):
    keys = torch.randn(2, 7, 3, 16)
    angles = torch.arange(7)[:, None] * torch.rand(rotary // 2)
    cos_sin = scale * torch.cat([angles.cos(), angles.sin()], dim=-1).expand(2, 7, rotary)
    again = undo_rotation(rotate(keys, cos_sin, is_interleaved), cos_sin, is_interleaved=is_interleaved)
    torch.testing.assert_close(again, keys, rtol=1e-5, atol=1e-5)


def test_boundary_is_each_token_once_or_its_overlap_twice():
    assert boundary_positions(10, 3) == [0, 1, 2, 7, 8, 9]
    assert boundary_positions(4, 3) == [0, 1, 2, 3]
    assert sorted(boundary_positions(4, 3, count_overlap_twice=True)) == [0, 1, 1, 2, 2, 3]
    assert boundary_positions(2, 3) == [0, 1]


def test_budgets_of_a_batch_are_those_of_each_alone():
    router = AttentionRouter(RouterConfig.for_head_dim(16, init_std=0.5))
    pooled, budgets = torch.randn(5, 4, 16), torch.tensor([0.0, 1.0, -1.0, 0.3, 50.0])
    together = decide_routes(router, pooled, budgets)
    alone = [router(pooled[i : i + 1], layer=0, budget=float(b))[0] for i, b in enumerate(budgets)]
    assert torch.equal(together, torch.stack(alone)) and together[4].all() and not together[:4].all()
