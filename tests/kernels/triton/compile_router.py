"""Compile the fused router for sm_90, without a GPU; prints a JSON line a case."""

import json

import torch
from compile_lists import Hopper, measure
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from elastic_attention import RouterConfig
from elastic_attention.kernels.triton.router import RouterWeights, route_fused
from elastic_attention.router import AttentionRouter

launch = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
    print(json.dumps({"name": self.fn.__name__, **measure(kernel)}), flush=True)


if __name__ == "__main__":
    driver.set_active(Hopper())
    JITFunction.run = compile_only
    for width in (64, 128, 256):
        weights = RouterWeights.from_state(AttentionRouter(RouterConfig.for_head_dim(width)).state_dict())
        for dtype in (torch.bfloat16, torch.float32):
            route_fused(torch.empty(1, 200, 8, width, dtype=dtype), torch.empty(1, 200), weights)
