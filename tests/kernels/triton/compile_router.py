"""Compile the fused router for sm_90, without a GPU; prints a JSON line a case."""

import torch
from hopper_compiler import compile_only

from elastic_attention import RouterConfig
from elastic_attention.kernels.triton.router import RouterWeights, route_fused
from elastic_attention.router import AttentionRouter

if __name__ == "__main__":
    compile_only()
    for width in (64, 128, 256):
        weights = RouterWeights.from_state(AttentionRouter(RouterConfig.for_head_dim(width)).state_dict())
        for dtype in (torch.bfloat16, torch.float32):
            route_fused(torch.empty(1, 200, 8, width, dtype=dtype), torch.empty(1, 200), weights)
