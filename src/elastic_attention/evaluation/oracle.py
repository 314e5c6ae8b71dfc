"""The gate before every kernel time: a kernel that differs from the oracle is not worth timing."""

from __future__ import annotations

import torch

from ..attention import hybrid_attention
from ..config import StreamingConfig
from ..errors import ElasticAttentionError
from ..patterns import build_pattern

SEED = 0


class OracleMismatch(ElasticAttentionError):
    """A kernel's output lies farther from the oracle than rounding explains."""


def check_against_oracle(
    pattern: StreamingConfig,
    *,
    group_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: str = "auto",
) -> float:
    """Compare `hybrid_attention` with the float64 oracle: a full and a sparse KV head, an odd length past the window.

    The bound is derived, not tuned: masked PyTorch attention in the same dtype may err by e against the oracle, so the
    kernel may err by 2 e, plus one rounding of the largest output.

    Returns:
        The largest difference.

    Raises:
        OracleMismatch: it exceeds the bound; names both.
    """
    tokens = pattern.num_sink_tokens + pattern.local_window + 3 * pattern.block_size + 37
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (
        torch.randn(1, heads, tokens, head_dim, generator=generator).to(device, dtype)
        for heads in (2 * group_size, 2, 2)
    )
    is_sparse = torch.tensor([[False, True]])
    positions = torch.arange(tokens, device=device)
    visible = torch.ones(2, tokens, tokens, dtype=torch.bool, device=device).tril()
    visible[1] &= build_pattern(pattern).is_visible(positions[:, None], positions[None])
    mask = visible.repeat_interleave(group_size, dim=0)[None]
    with torch.inference_mode():
        exact = hybrid_attention(
            q.double(), k.double(), v.double(), is_sparse.to(device), pattern=pattern, backend="reference"
        )
        masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out = hybrid_attention(q, k, v, is_sparse, pattern=pattern, backend=backend)
    assert isinstance(exact, torch.Tensor) and isinstance(out, torch.Tensor)
    error = float((out.double() - exact).abs().max())
    bound = 2 * float((masked.double() - exact).abs().max()) + torch.finfo(dtype).eps * float(exact.abs().max())
    if not error <= bound:  # NaN must fail too
        raise OracleMismatch(
            f"Backend {backend!r} differs from the oracle by {error:.2e}, more than the {bound:.2e} that rounding "
            f"explains ({dtype}, head_dim {head_dim}, {tokens} tokens). Do not use its times."
        )
    return error
