"""XAttention and triangle through the public verbs: backends agree, layouts agree, routes get a gradient."""

import pytest
import torch

from elastic_attention import StreamingConfig, TriangleConfig, XAttentionConfig, blended_attention, hybrid_attention

STREAMING = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
TRIANGLE = TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16, num_last_queries=20)
XATTENTION = XAttentionConfig(block_size=16, stride=4, threshold=0.6)
PAIRS = [(XATTENTION, "full"), (STREAMING, XATTENTION), (TRIANGLE, "full")]
NAMES = ["FA-XA", "XA-SSA", "FA-TA"]


def make_qkv(batch, num_queries, num_keys):
    torch.manual_seed(0)
    return (
        3 * torch.randn(batch, 6, num_queries, 16),
        3 * torch.randn(batch, 2, num_keys, 16),
        torch.randn(batch, 2, num_keys, 16),
    )


def call(backend, pair, *tensors, routes, **options):
    pattern, full = pair
    return hybrid_attention(*tensors, routes, pattern=pattern, full_pattern=full, backend=backend, **options)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
@pytest.mark.parametrize("num_queries", [150, 64, 23])
def test_cpu_agrees_with_the_oracle(pair, num_queries):
    tensors, routes = make_qkv(2, num_queries, 150), torch.tensor([[True, False], [False, True]])
    for ends in (None, torch.tensor([150, 131])):
        options = dict(routes=routes, prompt_lengths=ends, return_lse=True)
        wanted, wanted_lse = call("reference", pair, *tensors, **options)
        out, lse = call("cpu", pair, *tensors, **options)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse, wanted_lse, rtol=1e-4, atol=1e-5)
        dense = hybrid_attention(*tensors, torch.zeros_like(routes), pattern=STREAMING)
        assert not torch.allclose(out, dense, atol=1e-3)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_padding_equals_each_sequence_alone(backend, pair):
    q, k, v = make_qkv(3, 150, 150)
    routes, padding = torch.tensor([[True, False], [False, True], [True, True]]), torch.tensor([0, 37, 100])
    ends = torch.tensor([140, 113, 50])
    out = call(backend, pair, q, k, v, routes=routes, left_padding=padding, prompt_lengths=ends)
    for b, pad in enumerate(padding.tolist()):
        alone = call(
            backend,
            pair,
            *(x[b : b + 1, :, pad:] for x in (q, k, v)),
            routes=routes[b : b + 1],
            prompt_lengths=ends[b : b + 1],
        )
        torch.testing.assert_close(out[b, :, pad:], alone[0], rtol=1e-5, atol=1e-6)
        assert not out[b, :, :pad].any()


def test_responses_of_xattention_read_everything():
    q, k, v = make_qkv(1, 100, 100)
    routes = torch.ones(1, 2, dtype=torch.bool)
    dense = hybrid_attention(q, k, v, ~routes, pattern=STREAMING)
    out = call("cpu", (XATTENTION, "full"), q, k, v, routes=routes, prompt_lengths=torch.tensor([80]))
    torch.testing.assert_close(out[:, :, 80:], dense[:, :, 80:], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(out[:, :, :80], dense[:, :, :80], atol=1e-3)


def test_the_last_queries_of_a_triangle_prompt_read_everything():
    q, k, v = make_qkv(1, 150, 150)
    routes = torch.ones(1, 2, dtype=torch.bool)
    dense = hybrid_attention(q, k, v, ~routes, pattern=STREAMING)
    streaming = hybrid_attention(q, k, v, routes, pattern=STREAMING)
    out = call("cpu", (TRIANGLE, "full"), q, k, v, routes=routes, prompt_lengths=torch.tensor([130]))
    torch.testing.assert_close(out[:, :, 110:130], dense[:, :, 110:130], rtol=1e-5, atol=1e-6)
    for rows in (slice(0, 110), slice(130, 150)):
        torch.testing.assert_close(out[:, :, rows], streaming[:, :, rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_blending_is_the_weighted_mean_and_has_the_gradient_of_the_difference(backend, pair):
    q, k, v = (x.requires_grad_() for x in make_qkv(1, 90, 90))
    pattern, full = pair
    route = torch.tensor([[0.3, 1.0]], requires_grad=True)
    out = blended_attention(q, k, v, route, pattern=pattern, full_pattern=full, backend=backend)
    sparse = call("cpu", pair, q, k, v, routes=torch.ones(1, 2, dtype=torch.bool))
    dense = call("cpu", pair, q, k, v, routes=torch.zeros(1, 2, dtype=torch.bool))
    weight = route.repeat_interleave(3, 1)[..., None, None]
    torch.testing.assert_close(out, weight * sparse + (1 - weight) * dense, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, route, grad, retain_graph=True)
    wanted = ((sparse - dense) * grad).sum((2, 3)).unflatten(1, (2, 3)).sum(2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert all(g.any() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_patterns_that_cannot_stand_beside_each_other():
    q, k, v = make_qkv(1, 20, 20)
    routes = torch.ones(1, 2, dtype=torch.bool)
    for pair in ((TRIANGLE, XATTENTION), (STREAMING, "half"), (XATTENTION, XATTENTION)):
        with pytest.raises(ValueError, match="full_pattern"):
            call("cpu", pair, q, k, v, routes=routes)
