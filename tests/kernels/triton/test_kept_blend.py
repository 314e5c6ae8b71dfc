import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from elastic_attention import StreamingConfig, XAttentionConfig, blended_attention
from elastic_attention.attention import blended as attention
from elastic_attention.kernels.kept import keep_results
from elastic_attention.kernels.triton import blended, prefill

SMALL = StreamingConfig(num_sink_tokens=16, local_window=16, block_size=16)


def test_a_layer_that_runs_again_attends_once(device, monkeypatch):
    launches, launch = [], blended.launch_blend

    def launch_counted(*arguments):
        launches.append(arguments)
        return launch(*arguments)

    monkeypatch.setattr(blended, "launch_blend", launch_counted)
    q, k, v = (torch.randn(1, 2, 64, 16, device=device) for _ in range(3))
    results = []
    for options in ({}, {"context_fn": keep_results}):
        leaf, route = q.clone().requires_grad_(), torch.tensor([[0.0, 1.0]], device=device, requires_grad=True)

        def layer(x, route=route):
            return blended.blend_triton(x.sin(), k, v, route, SMALL, 0.25).cos()

        out = checkpoint(layer, leaf, use_reentrant=False, **options)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad, route.grad))
    assert len(launches) == 3  # twice, then once
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("keeps", [False, True])
def test_lists_are_not_held_in_between_and_both_paths_run_once(device, monkeypatch, keeps):
    launches, lists = [], []
    launch, plan = prefill.launch_prefill, attention.make_plan

    def plan_watched(*arguments):
        made = plan(*arguments)
        if made.lists is not None:
            lists.append(weakref.ref(made.lists.indices))
        return made

    monkeypatch.setattr(prefill, "launch_prefill", lambda *args: launches.append(args) or launch(*args))
    monkeypatch.setattr(attention, "make_plan", plan_watched)
    q, k, v = (torch.randn(1, 2, 80, 16, device=device) for _ in range(3))
    leaf, route = q.clone().requires_grad_(), torch.tensor([[0.0, 1.0]], device=device, requires_grad=True)
    pattern = XAttentionConfig(block_size=64, stride=4)

    def layer(x):
        return blended_attention(x.sin(), k, v, route, pattern=pattern, backend="triton").cos()

    out = checkpoint(layer, leaf, use_reentrant=False, **({"context_fn": keep_results} if keeps else {}))
    launches.clear()
    gc.collect()
    assert [held() for held in lists] == [None]
    out.square().sum().backward()
    assert len(launches) == (0 if keeps else 2)
    assert bool(leaf.grad.isfinite().all()) and bool((leaf.grad != 0).any())
