"""Slow, obvious second opinions that the tests compare with. Nothing here imports the code it judges."""

import torch
from hypothesis import strategies as st

from elastic_attention import StreamingConfig


def is_visible(config, query, key):
    """The block rule of streaming attention, for two plain integers."""
    block = config.block_size
    is_sink = key // block < config.num_sink_tokens // block
    is_local = key // block > query // block - config.local_window // block
    return key <= query and (is_sink or is_local)


def visible_mask(config, num_tokens):
    """(n, n) bool: rows are queries."""
    positions = range(num_tokens)
    mask = [[is_visible(config, q, k) for k in positions] for q in positions]
    return torch.tensor(mask, dtype=torch.bool).reshape(num_tokens, num_tokens)


def attend_naively(q, k, v, head_is_sparse, config, scale=None):
    """Masked attention in the dtype of its inputs, every step rounded: a float64 oracle or a low-precision one.

    Returns out (B, H, T, D) and lse (B, H, T).
    """
    num_queries, num_keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    sparse = visible_mask(config, num_keys)[num_keys - num_queries :]
    causal = torch.ones(num_keys, num_keys).tril().bool()[num_keys - num_queries :]
    visible = torch.where(head_is_sparse[:, :, None, None], sparse, causal).repeat_interleave(group, 1)
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def assert_as_exact(results, exact, low, *, roundings, cancelled=0.0):
    """Errors against float64 stay below those of the same-precision oracle plus `roundings` units in the last place.

    Args:
        results: tensors of the code under test.
        exact: the same quantities in float64.
        low: the same quantities from the oracle that works in the dtype of `results`.
        roundings: how often the code rounds a partial result that the oracle does not.
        cancelled: size of terms that cancel in the result, which the code keeps in float32 at least.
    """
    for i, (result, truth, rough) in enumerate(zip(results, exact, low, strict=True)):
        assert result.shape == truth.shape and bool(torch.isfinite(result).all()), i
        error = (result.double() - truth).abs().max().item()
        oracle_error = (rough.double() - truth).abs().max().item()
        limit = oracle_error + roundings * torch.finfo(rough.dtype).eps * truth.abs().max().item()
        limit += roundings * torch.finfo(torch.float32).eps * cancelled
        assert error <= limit, f"result {i}: error {error:.3g} above {limit:.3g} (oracle's own {oracle_error:.3g})"


@st.composite
def streaming_configs(draw):
    """Small blocks, so that few tokens cross many of them."""
    block = draw(st.sampled_from([1, 4, 8, 16]))
    return StreamingConfig(
        num_sink_tokens=block * draw(st.integers(1, 3)), local_window=block * draw(st.integers(1, 4)), block_size=block
    )
