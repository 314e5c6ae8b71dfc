"""MSR and ESR against their definitions, counted from masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig, effective_sparsity_ratio, model_sparsity_ratio
from elastic_attention.patterns import build_pattern
from elastic_attention.sparsity import count_causal_pairs, count_read_pairs, effective_sparsity_ratio_last_layer
from oracles import streaming_configs, visible_mask


def test_msr_is_the_share_of_sparse_heads_of_each_sequence():
    routes = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    assert model_sparsity_ratio(routes).tolist() == [0.75, 0.25]


def test_msr_is_differentiable():
    routes = torch.rand(3, 4, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(model_sparsity_ratio(routes).sum(), routes)
    assert torch.equal(grad, torch.full((3, 4, 2), 1 / 8))


@given(config=streaming_configs(), start=st.integers(0, 60), more=st.integers(0, 60), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_read_pairs_and_esr_against_masks(config, start, more, seed):
    routes = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    stop = start + more
    sparse, causal = visible_mask(config, stop)[start:], torch.ones(stop, stop).tril()[start:]
    dense_pairs = int(causal.sum())
    read = sum(int(sparse.sum()) if is_sparse else dense_pairs for is_sparse in routes.flatten().tolist())
    pattern = build_pattern(config)
    assert count_causal_pairs(start, stop) == dense_pairs
    counts = [count_read_pairs(pattern, start, stop, num_heads=3, num_sparse=int(row.sum())) for row in routes]
    assert sum(counts) == read
    esr = effective_sparsity_ratio(counts, [3 * dense_pairs] * 5)
    if more:
        assert esr == pytest.approx(1 - read / (15 * dense_pairs)) and 0 <= esr < 1
    else:
        assert esr is None


def test_esr_of_the_last_layer():
    config = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
    routes = torch.tensor([[[True, True], [True, False]], [[True, True], [False, False]]])
    pruned = 1 - int(visible_mask(config, 200).sum()) / (200 * 201 / 2)
    found = effective_sparsity_ratio_last_layer(routes, build_pattern(config), 200)
    torch.testing.assert_close(found, torch.tensor([pruned / 2, 0.0]))
