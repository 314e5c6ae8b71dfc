"""The oracle itself, against plain loops and PyTorch's own attention."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig, hybrid_attention
from oracles import attend_naively, is_visible, streaming_configs


@given(config=streaming_configs(), num_keys=st.integers(1, 40), num_queries=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_reference_is_softmax_over_visible_keys(config, num_keys, num_queries, seed):
    torch.manual_seed(seed)
    num_queries = min(num_queries, num_keys)
    q, k, v = torch.randn(1, 2, num_queries, 16), torch.randn(1, 2, num_keys, 16), torch.randn(1, 2, num_keys, 16)
    out, lse = hybrid_attention(
        q, k, v, torch.tensor([[True, False]]), pattern=config, backend="reference", return_lse=True
    )
    for head in range(2):
        for t in range(num_queries):
            position = t + num_keys - num_queries
            keys = [j for j in range(position + 1) if head == 1 or is_visible(config, position, j)]
            scores = q[0, head, t].double() @ k[0, head, keys].double().T / 4
            torch.testing.assert_close(out[0, head, t], (scores.softmax(0) @ v[0, head, keys].double()).float())
            torch.testing.assert_close(lse[0, head, t], scores.logsumexp(0).float())


def test_full_heads_are_causal_attention():
    q, k, v = torch.randn(2, 6, 77, 16), torch.randn(2, 2, 77, 16), torch.randn(2, 2, 77, 16)
    config = StreamingConfig(num_sink_tokens=4, local_window=4, block_size=4)
    routes = torch.zeros(2, 2, dtype=torch.bool)
    out = hybrid_attention(q, k, v, routes, pattern=config, backend="reference")
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(out, attend_naively(q, k, v, routes, config)[0])
