"""Blended attention of backend "triton" against the oracle: the mix and the gradient of everything in it."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.kernels.arguments import make_outputs
from elastic_attention.kernels.reference import blend_reference
from elastic_attention.kernels.spans import Spans, list_spans
from elastic_attention.kernels.triton.backward import launch_gradients
from elastic_attention.kernels.triton.blended import blend_triton, launch_blend
from elastic_attention.kernels.triton.mixing import attend_paths, mix_paths
from elastic_attention.kernels.triton.prefill import attend_triton
from elastic_attention.kernels.triton.shapes import TileShape
from elastic_attention.patterns import build_pattern
from elastic_attention.patterns.streaming import StreamingPattern
from oracles import assert_as_exact, attend_naively

pytestmark = pytest.mark.usefixtures("poisoned")
SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
ROUNDINGS = 8  # results are rounded at other places than in the oracle, and gradients add up over tiles


def make_inputs(device, *, batch=1, num_q_heads=2, num_kv_heads=2, num_queries, num_keys, head_dim=16, dtype=None):
    shapes = (num_q_heads, num_queries), (num_kv_heads, num_keys), (num_kv_heads, num_keys), (num_q_heads, num_queries)
    tensors = (torch.randn(batch, n, h, head_dim, device=device).to(dtype).transpose(1, 2) for h, n in shapes)
    q, k, v, grad = tensors
    return q, k, v, torch.rand(batch, num_kv_heads, device=device), grad


def differentiate_exactly(q, k, v, route, grad, config, scale):
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, route)]
    out = blend_reference(*wide, build_pattern(config), scale)
    return out.detach(), *torch.autograd.grad(out, wide, grad.double())


def differentiate_naively(q, k, v, route, grad, config, scale):
    """The same, with every step rounded to the dtype of the inputs."""
    leaves = [x.detach().cpu().requires_grad_() for x in (q, k, v, route)]
    weight = leaves[3].repeat_interleave(q.shape[1] // k.shape[1], 1)[..., None, None].to(q.dtype)
    routes = torch.ones(route.shape, dtype=torch.bool)
    sparse, full = (attend_naively(*leaves[:3], is_sparse, config, scale)[0] for is_sparse in (routes, ~routes))
    out = weight * sparse + (1 - weight) * full
    return out.detach(), *torch.autograd.grad(out, leaves, grad.cpu())


def check(results, inputs, config, scale=0.25):
    """Errors stay below those of the oracle in the same precision and some roundings of what is added up."""
    q, k, v, _, grad = inputs
    exact = [x.cpu() for x in differentiate_exactly(*inputs, config, scale)]
    low = differentiate_naively(*inputs, config, scale)
    results = [x.cpu() for x in results]
    largest = [x.abs().max().item() for x in (grad, v, q, k)]
    # One term of dq and dk; a softmax over few keys cancels most of it.
    cancelled = largest[0] * largest[1] * max(largest[2:]) * q.shape[-1] ** 0.5
    assert_as_exact(results[:4], exact[:4], low[:4], roundings=ROUNDINGS, cancelled=cancelled)
    # The route's gradient adds up products of every query's result and its gradient, each of them rounded.
    num_terms = q.shape[2] * q.shape[3] * q.shape[1] // k.shape[1]
    limit = ROUNDINGS * torch.finfo(q.dtype).eps * largest[0] * largest[1] * num_terms**0.5
    assert (results[4].double() - exact[4]).abs().max() <= limit + (low[4].double() - exact[4]).abs().max()


def run(inputs, config, tile, scale=0.25, spans=None, use_descriptors=False):
    q, k, v, route, grad = inputs
    shape = TileShape(*tile, 4, 1)
    out, paths = launch_blend(q, k, v, route, config, scale, spans, shape, use_descriptors)
    is_ragged = spans is not None
    gradients = launch_gradients(
        grad, q, k, v, route, paths, config, scale, spans, (shape, shape), use_descriptors and not is_ragged
    )
    return out, *gradients


@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (16, 32)])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (64, 64), (45, 111)])
def test_odd_lengths_and_exact_multiples(device, tile, num_queries, num_keys):
    inputs = make_inputs(device, num_queries=num_queries, num_keys=num_keys)
    check(run(inputs, SMALL, tile), inputs, SMALL)


@pytest.mark.parametrize(("block", "sinks", "window"), [(16, 3, 1), (24, 1, 2), (32, 1, 1), (64, 1, 1)])
def test_blocks_longer_and_shorter_than_tiles(device, block, sinks, window):
    config = StreamingConfig(num_sink_tokens=sinks * block, local_window=window * block, block_size=block)
    inputs = make_inputs(device, num_q_heads=1, num_kv_heads=1, num_queries=130, num_keys=150)
    for tile in ((32, 32), (64, 32)):
        check(run(inputs, config, tile), inputs, config)


@pytest.mark.parametrize("route", [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.3, 1e-6]])
def test_hard_routes_pass_over_what_they_do_not_read(device, route):
    *inputs, _, grad = make_inputs(device, num_queries=50, num_keys=90)
    inputs = *inputs, torch.tensor([route], device=device), grad
    check(run(inputs, SMALL, (32, 16)), inputs, SMALL)


@pytest.mark.parametrize("group_size", [1, 3, 8])
def test_group_sizes(device, group_size):
    inputs = make_inputs(device, num_q_heads=group_size, num_kv_heads=1, num_queries=40, num_keys=70)
    check(run(inputs, SMALL, (32, 32)), inputs, SMALL)


@pytest.mark.parametrize("head_dim", [48, 64, 128, 256])
def test_head_dims_through_autograd(device, head_dim):
    *inputs, grad = make_inputs(device, num_queries=50, num_keys=70, head_dim=head_dim)
    leaves = [x.requires_grad_() for x in inputs]
    out = blend_triton(*leaves, SMALL, head_dim**-0.5)
    results = out.detach(), *torch.autograd.grad(out, leaves, grad)
    check(results, (*(x.detach() for x in inputs), grad), SMALL, head_dim**-0.5)


def test_two_calls_of_a_kernel_for_one_path_are_as_good(device):
    *inputs, grad = make_inputs(device, num_q_heads=4, num_queries=50, num_keys=70)
    leaves = [x.requires_grad_() for x in inputs]
    out = blend_triton(*leaves, SMALL, 0.25, attend=attend_triton)
    results = out.detach(), *torch.autograd.grad(out, leaves, grad)
    check(results, (*(x.detach() for x in inputs), grad), SMALL)


@pytest.mark.parametrize("attend", [None, attend_triton])
def test_routes_may_be_a_part_of_a_larger_tensor(device, attend):
    *inputs, _, grad = make_inputs(device, batch=2, num_queries=50, num_keys=70)
    part = torch.rand(2, 5, device=device)[:, 1:3]
    leaves = [x.requires_grad_() for x in (*inputs, part)]
    out = blend_triton(*leaves, SMALL, 0.25, attend=attend)
    results = out.detach(), *torch.autograd.grad(out, leaves, grad)
    check(results, (*(x.detach() for x in leaves), grad), SMALL)


def test_routes_that_rounding_left_outside_are_the_ends(device):
    *inputs, _, grad = make_inputs(device, num_queries=50, num_keys=70)
    ends = torch.tensor([[1.0, 0.0]], device=device)
    found = []
    for route in (ends, torch.tensor([[1.0 + 1e-6, -1e-6]], device=device)):
        leaves = [x.requires_grad_() for x in (*inputs, route)]
        out = blend_triton(*leaves, SMALL, 0.25)
        found.append([out, *torch.autograd.grad(out, leaves, grad)])
    for wanted, same in zip(*found, strict=True):
        assert torch.equal(wanted, same)


def test_half_precision(device, half_dtypes):
    for dtype in half_dtypes:
        inputs = make_inputs(device, num_queries=70, num_keys=90, dtype=dtype)
        check(run(inputs, SMALL, (16, 16)), inputs, SMALL)


def test_paths_of_very_different_weight(device):
    """Hidden keys that hold nearly all the mass of the full path: exp of the difference of the sums overflows."""
    q, k, v, route, grad = make_inputs(device, num_q_heads=1, num_kv_heads=1, num_queries=100, num_keys=100)
    q, k = q.abs(), k.clone()
    k[:, :, 20:40] = 12.0
    inputs = q, k, v, route, grad
    results = run(inputs, SMALL, (16, 16), scale=1.0)
    exact = differentiate_exactly(*inputs, SMALL, 1.0)
    for result, truth in zip(results, exact, strict=True):
        # Scores of some hundreds: their own rounding moves the weights by 1e-5.
        torch.testing.assert_close(result.double(), truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())


def attend_hidden(q, k, v, config, scale, spans=None):
    """Attention to the keys that streaming heads do not read; rows of which it hides none: nan and -inf."""
    out, lse = make_outputs(q)
    out.fill_(float("nan"))
    lse.fill_(float("-inf"))
    group = q.shape[1] // k.shape[1]
    for _, b, queries, keys in list_spans(spans, q, k):
        key = torch.arange(keys.stop - keys.start, device=q.device)
        query = key[len(key) - (queries.stop - queries.start) :, None]
        seen = StreamingPattern(config).is_visible(query, key)
        for head in range(q.shape[1]):
            scores = q[b, head, queries] @ k[b, head // group, keys].T * scale
            scores = scores.masked_fill(seen | (key > query), float("-inf"))
            out[b, head, queries] = scores.softmax(-1) @ v[b, head // group, keys]
            lse[b, head, queries] = scores.logsumexp(-1)
    return out, lse


def test_the_full_path_from_the_sparse_one_and_the_rest(device):
    q, k, v, route, grad = inputs = make_inputs(device, batch=2, num_q_heads=4, num_queries=70, num_keys=90)
    leaves = [x.requires_grad_() for x in (q, k, v, route)]
    out = blend_triton(*leaves, SMALL, 0.25, attend=attend_triton, attend_hidden=attend_hidden)
    results = out.detach(), *torch.autograd.grad(out, leaves, grad)
    check(results, [x.detach() for x in inputs], SMALL)


@pytest.mark.parametrize("is_packed", [False, True])
def test_ragged_batches(device, is_packed):
    """Gradients of each sequence are those it has alone; rows of no sequence have none, whatever memory holds there."""
    lengths, starts = [(40, 40), (17, 33)], ([0, 40], [0, 40]) if is_packed else ([2, 25], [2, 9])
    shapes = ((1, 57), (1, 73)) if is_packed else ((2, 42), (2, 42))
    q, grad, k, v = (torch.full((*shapes[i], 2, 16), float("nan"), device=device).transpose(1, 2) for i in (0, 0, 1, 1))
    route = torch.rand(2, 2, device=device)
    places = []
    for i, (t, s) in enumerate(lengths):
        element = 0 if is_packed else i
        rows = element, slice(None), slice(starts[0][i], starts[0][i] + t)
        columns = element, slice(None), slice(starts[1][i], starts[1][i] + s)
        places.append((rows, columns))
        for x, place in ((q, rows), (grad, rows), (k, columns), (v, columns)):
            x[place] = torch.randn(x[place].shape, device=device)
    numbers = starts[0], [t for t, _ in lengths], starts[1], [s for _, s in lengths]
    fields = (torch.tensor(x, dtype=torch.int32, device=device) for x in numbers)
    names = "query_start", "query_length", "key_start", "key_length"
    spans = Spans(**dict(zip(names, fields, strict=True)), is_packed=is_packed, max_query_length=40)
    out, dq, dk, dv, d_route = run((q, k, v, route, grad), SMALL, (16, 16), spans=spans, use_descriptors=True)
    for attend_rest in (None, attend_hidden):
        paths, mixed = attend_paths(q, k, v, route, SMALL, 0.25, spans, attend_triton, attend_rest)
        torch.testing.assert_close(mixed, out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mix_paths(route, paths, k.shape[2], spans), mixed, rtol=1e-6, atol=1e-6)
    for i, (rows, columns) in enumerate(places):
        alone = q[rows][None], k[columns][None], v[columns][None], route[i : i + 1], grad[rows][None]
        results = out[rows][None], dq[rows][None], dk[columns][None], dv[columns][None], d_route[i : i + 1]
        check(results, alone, SMALL)
        for x, place in ((out, rows), (dq, rows), (dk, columns), (dv, columns)):
            x[place] = 0
    assert all(bool((x == 0).all()) for x in (out, dq, dk, dv))


@pytest.mark.parametrize("group_size", [1, 2])
def test_whole_sequences_without_gaps(device, group_size):
    """Tiles may read the rows of neighbours, and every row is written: fresh memory holds nan here."""
    lengths = [37, 1, 50]
    inputs = make_inputs(
        device, num_q_heads=2 * group_size, num_kv_heads=2, num_queries=sum(lengths), num_keys=sum(lengths)
    )
    q, k, v, _, grad = inputs
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    start = (length.cumsum(0) - length).int()
    places = {"query_start": start, "query_length": length, "key_start": start, "key_length": length}
    spans = Spans(**places, is_packed=True, max_query_length=max(lengths), is_whole=True)
    route = torch.tensor([[0.0, 1.0], [0.5, 0.0], [1.0, 0.3]], device=device)
    paths = launch_blend(q, k, v, route, SMALL, 0.25, spans, TileShape(16, 16, 4, 1), False)[1]
    dq, dk, dv, d_route = launch_gradients(
        grad, q, k, v, route, paths, SMALL, 0.25, spans, (TileShape(16, 16, 4, 1), TileShape(32, 16, 4, 1)), True
    )
    for i, part in enumerate(torch.arange(sum(lengths), device=device).split(lengths)):
        alone = *(x[:, :, part] for x in (q, k, v)), route[i : i + 1], grad[:, :, part]
        out = blend_triton(*alone[:4], SMALL, 0.25)
        check((out, *(x[:, :, part] for x in (dq, dk, dv)), d_route[i : i + 1]), alone, SMALL)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_at_the_corners_the_mix_is_hybrid_attention(device, is_sparse):
    q, k, v, route, _ = make_inputs(device, num_queries=90, num_keys=90)
    blended = blend_triton(q, k, v, torch.full_like(route, is_sparse), SMALL, 0.25)
    hybrid, _ = attend_triton(q, k, v, torch.full_like(route, is_sparse, dtype=torch.int32), SMALL, 0.25)
    torch.testing.assert_close(blended, hybrid, rtol=1e-6, atol=1e-6)
