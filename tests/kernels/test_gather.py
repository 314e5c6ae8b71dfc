"""Backend "cpu" against the oracle: forward, log-sum-exp and every gradient."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig, blended_attention, hybrid_attention
from oracles import assert_as_exact, attend_naively, streaming_configs

SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
ROUNDINGS = 8  # up to three parts are merged, and overlapping windows add up one key's gradient


def make_inputs(*, batch=2, group_size=3, num_kv_heads=2, num_queries, num_keys, head_dim=16, dtype=torch.float32):
    shapes = [(batch, num_kv_heads * group_size, num_queries, head_dim)] + [
        (batch, num_kv_heads, num_keys, head_dim)
    ] * 2
    q, k, v = (torch.randn(s).to(dtype).requires_grad_() for s in shapes)
    return q, k, v, torch.randn(shapes[0]).to(dtype)


def with_gradients(attend, inputs, grad):
    out = attend(*inputs)
    return (out, *torch.autograd.grad(out, inputs, grad))


def cancelled_terms(q, k, v, grad):
    """Size of one term of dq and dk: dL/dP times a query or key; a softmax over few keys cancels most of it."""
    largest = [x.detach().abs().max().item() for x in (grad, v, q, k)]
    return largest[0] * largest[1] * max(largest[2:]) * q.shape[-1] ** 0.5


def check_against_oracle(q, k, v, grad, routes, config):
    def attend(backend):
        return lambda *qkv: hybrid_attention(*qkv, routes, pattern=config, backend=backend)

    wide = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    exact = with_gradients(attend("reference"), wide, grad.double())
    low = with_gradients(lambda *qkv: attend_naively(*qkv, routes, config)[0], (q, k, v), grad)
    results = with_gradients(attend("cpu"), (q, k, v), grad)
    assert_as_exact(results, exact, low, roundings=ROUNDINGS, cancelled=cancelled_terms(q, k, v, grad))


@given(
    config=streaming_configs(),
    num_queries=st.integers(1, 150),
    num_before=st.sampled_from([0, 0, 1, 15, 16, 48, 77]),
    heads=st.sampled_from([(1, 3), (3, 2), (4, 1), (8, 1)]),
    seed=st.integers(0, 2**16),
)
@example(config=SMALL, num_queries=128, num_before=0, heads=(3, 2), seed=0)
@example(config=SMALL, num_queries=1, num_before=63, heads=(3, 2), seed=0)
@settings(max_examples=60)
def test_cpu_equals_reference(config, num_queries, num_before, heads, seed):
    torch.manual_seed(seed)
    group_size, num_kv_heads = heads
    inputs = make_inputs(
        group_size=group_size, num_kv_heads=num_kv_heads, num_queries=num_queries, num_keys=num_queries + num_before
    )
    routes = torch.rand(2, num_kv_heads) < 0.5
    check_against_oracle(*inputs, routes, config)


@pytest.mark.parametrize("length", [1, 16, 48, 63, 64, 111, 512, 1000])
@pytest.mark.parametrize("routes", ["full", "sparse", "mixed"])
def test_odd_lengths_and_exact_multiples(length, routes):
    is_sparse = {"full": [[False, False]], "sparse": [[True, True]], "mixed": [[True, False]]}[routes]
    inputs = make_inputs(batch=1, num_queries=length, num_keys=length)
    check_against_oracle(*inputs, torch.tensor(is_sparse), SMALL)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("group_size", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dims_group_sizes_and_dtypes(head_dim, group_size, dtype):
    inputs = make_inputs(batch=1, group_size=group_size, num_queries=111, num_keys=200, head_dim=head_dim, dtype=dtype)
    check_against_oracle(*inputs, torch.tensor([[True, False]]), SMALL)


def test_window_longer_than_the_sequence_is_dense():
    q, k, v, _ = make_inputs(num_queries=100, num_keys=100)
    wide = StreamingConfig(num_sink_tokens=16, local_window=1024, block_size=16)
    dense = hybrid_attention(q, k, v, torch.zeros(2, 2, dtype=torch.bool), pattern=wide, backend="cpu")
    sparse = hybrid_attention(q, k, v, torch.ones(2, 2, dtype=torch.bool), pattern=wide, backend="cpu")
    assert torch.equal(dense, sparse)


@pytest.mark.parametrize("length", [1, 63, 128, 300])
def test_sparse_heads_differ_from_full_ones_exactly_behind_the_window(length):
    q, k, v, _ = make_inputs(num_queries=length, num_keys=length)
    results = [hybrid_attention(q, k, v, torch.full((2, 2), s), pattern=SMALL, backend="cpu") for s in (False, True)]
    differs = (results[0] != results[1]).any(dim=-1).all(dim=(0, 1))
    assert differs.tolist() == [position >= 16 + 32 for position in range(length)]


@pytest.mark.parametrize("scale", [None, 0.7])
def test_log_sum_exp(scale):
    q, k, v, _ = make_inputs(num_queries=111, num_keys=150)
    routes = torch.tensor([[True, False], [False, True]])
    _, lse = hybrid_attention(q, k, v, routes, pattern=SMALL, scale=scale, return_lse=True, backend="cpu")
    _, exact = attend_naively(*(x.double() for x in (q, k, v)), routes, SMALL, scale)
    _, low = attend_naively(q, k, v, routes, SMALL, scale)
    assert lse.dtype == torch.float32
    assert_as_exact([lse], [exact], [low], roundings=4)


def test_strided_inputs():
    """Transposed views, as models hand them over, and key slices of a longer buffer."""
    q, k, v = (torch.randn(2, 300, heads, 16).transpose(1, 2) for heads in (6, 2, 2))
    routes = torch.tensor([[True, False], [False, True]])
    parts = q[:, :, 57:257], k[:, :, :257], v[:, :, :257]
    strided = hybrid_attention(*parts, routes, pattern=SMALL, backend="cpu")
    copied = hybrid_attention(*(x.contiguous() for x in parts), routes, pattern=SMALL, backend="cpu")
    assert torch.equal(strided, copied)


def test_finite_differences():
    torch.manual_seed(0)
    config = StreamingConfig(num_sink_tokens=2, local_window=4, block_size=2)
    q, k, v = (torch.randn(1, h, 11, 16, dtype=torch.float64).requires_grad_() for h in (2, 1, 1))
    for is_sparse in (True, False):
        route = torch.tensor([[is_sparse]])
        assert torch.autograd.gradcheck(
            lambda *x, route=route: hybrid_attention(*x, route, pattern=config, backend="cpu"),
            (q, k, v),
            fast_mode=True,
        )


@given(
    config=streaming_configs(),
    num_queries=st.integers(1, 120),
    before=st.sampled_from([0, 33]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_blended_equals_reference(config, num_queries, before, seed):
    torch.manual_seed(seed)
    q, k, v, grad = make_inputs(num_queries=num_queries, num_keys=num_queries + before)
    inputs = (q, k, v, torch.rand(2, 2, requires_grad=True))

    def naive(q, k, v, route):
        weight = route.repeat_interleave(3, 1)[..., None, None]
        sparse, full = (attend_naively(q, k, v, torch.full((2, 2), s), config)[0] for s in (True, False))
        return weight * sparse + (1 - weight) * full

    def blend(backend):
        return lambda *x: blended_attention(*x, pattern=config, backend=backend)

    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    exact = with_gradients(blend("reference"), wide, grad.double())
    low = with_gradients(naive, inputs, grad)
    # The route's gradient sums T * D products, so its rounding grows with the size of the terms, not of the sum.
    terms = (low[4].double() - exact[4]).abs().max() + 1e-6 * num_queries * 16
    results = with_gradients(blend("cpu"), inputs, grad)
    assert_as_exact(results[:4], exact[:4], low[:4], roundings=ROUNDINGS, cancelled=cancelled_terms(q, k, v, grad))
    assert (results[4].double() - exact[4]).abs().max() <= terms


def test_route_gradient_is_the_inner_product_with_the_difference_of_the_paths():
    q, k, v, grad = make_inputs(num_queries=150, num_keys=150, dtype=torch.float64)
    route = torch.tensor([[0.0, 1.0], [0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    out = blended_attention(q, k, v, route, pattern=SMALL, backend="cpu")
    (found,) = torch.autograd.grad(out, route, grad)
    sparse, full = (attend_naively(q, k, v, torch.full((2, 2), s), SMALL)[0] for s in (True, False))
    wanted = ((sparse - full) * grad).view(2, 2, 3, 150, 16).sum((2, 3, 4))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_blended_at_the_corners_is_hybrid(is_sparse):
    q, k, v, _ = make_inputs(num_queries=150, num_keys=150)
    blended = blended_attention(q, k, v, torch.full((2, 2), float(is_sparse)), pattern=SMALL, backend="cpu")
    routes = torch.full((2, 2), is_sparse)
    assert torch.equal(blended, hybrid_attention(q, k, v, routes, pattern=SMALL, backend="cpu"))
