"""Short inputs, of which every head reads everything: there the host is the bottleneck, and dense attention wins."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..config import SparsePattern, StreamingConfig
from ..kernels.backends import is_fused

# Measured on an H200 with (32, 8) heads of 128, microseconds on the GPU / on the host: at 512 tokens PyTorch takes
# 12.8 / 20 and our kernel 13.1 / 127, at 1,024 tokens 31.3 / 19 and 28.4 / 135.
LONGEST = 512


def is_short(q: Tensor, k: Tensor, pattern: SparsePattern, full_pattern: object, backend: str) -> bool:
    """Is dense attention the same as what the pattern says, and quicker than the fused kernels?

    Args:
        q, k: (B, H, T, D), (B, G, S, D), without padding.
        backend: what "auto" chose.
    """
    return (
        is_fused(backend)
        and isinstance(pattern, StreamingConfig)
        and full_pattern == "full"
        and q.shape[2] == k.shape[2] <= min(LONGEST, pattern.num_sink_tokens + pattern.local_window)
        and q.element_size() == 2
    )


def attend_short(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Dense causal attention of q (B, H, T, D) with k, v (B, G, T, D); differentiable."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
