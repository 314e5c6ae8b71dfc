import torch
from torch.utils.checkpoint import checkpoint

from elastic_attention import StreamingConfig
from elastic_attention.kernels.kept import keep_results
from elastic_attention.kernels.triton import blended

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
