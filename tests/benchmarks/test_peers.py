"""Plans of the peers, against the mask they stand for; the peers themselves need a GPU."""

import peers
import pytest
import torch

from elastic_attention import StreamingConfig, hybrid_attention
from elastic_attention.evaluation.bench_gpu import own_kernel, torch_kernels
from elastic_attention.evaluation.shapes import AttentionShape
from oracles import visible_mask

PATTERN = StreamingConfig(num_sink_tokens=32, local_window=64, block_size=16)
CPU = torch.device("cpu")


def test_block_lists_of_flex_attention():
    routes = torch.tensor([[True, False], [False, True]])
    mask = peers.build_block_mask(routes, PATTERN, tokens=192, group_size=2).to_dense().bool()
    tokens = torch.zeros(192, 192, dtype=torch.bool).tril()
    for b in range(2):
        for head in range(4):
            tokens = visible_mask(PATTERN, 192) if routes[b, head // 2] else torch.ones(192, 192).tril().bool()
            blocks = tokens.view(12, 16, 12, 16).any(3).any(1)
            assert torch.equal(mask[b, head], blocks)


def test_uneven_lengths_are_refused():
    with pytest.raises(ValueError, match="multiple of the block"):
        peers.build_block_mask(torch.tensor([[True]]), PATTERN, tokens=100, group_size=1)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_serial_split_equals_the_oracle(ratio):
    shape = AttentionShape(tokens=200, num_q_heads=8, num_kv_heads=4, head_dim=16)
    q, k, v = shape.draw(CPU, torch.float32)
    routes = shape.spread_sparse(ratio)
    dense = torch_kernels(CPU)[0].prepare(routes)
    out = peers.make_split(routes, dense, own_kernel("cpu", PATTERN).prepare)(q, k, v)
    exact = hybrid_attention(q, k, v, routes, pattern=PATTERN, backend="reference")
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)


def test_serial_split_needs_one_route():
    with pytest.raises(ValueError, match="one route"):
        peers.make_split(torch.tensor([[True, False], [False, True]]), None, None)


def test_flat_decode_lays_rows_back_to_back():
    plan = peers.plan_flat_decode(None, [5, 3, 5], 8, CPU)
    assert plan.starts.tolist() == [0, 5, 8, 13] and plan.query_starts.tolist() == [0, 1, 2, 3] and plan.longest == 5


def test_missing_peers_are_named():
    kernels, missing = peers.find_dense(CPU)
    assert [kernel.name for kernel in kernels][0] == "sdpa"
    names = {kernel.name for kernel in kernels} | {entry.name for entry in missing}
    assert "fa3" in names and all(entry.reason for entry in missing)
    kernels, missing = peers.find_hybrid(PATTERN, own_kernel("cpu", PATTERN))
    names = {kernel.name for kernel in kernels} | {entry.name for entry in missing}
    assert {"flex", "flash-sparse-attn"} <= names and any(name.startswith("split") for name in names)
