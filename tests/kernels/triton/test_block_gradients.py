"""The gradient of heads that read chosen blocks, against the oracle: any choice, any layout, and through blends."""

import pytest
import torch

from elastic_attention import StreamingConfig, TriangleConfig, XAttentionConfig, blended_attention, hybrid_attention
from elastic_attention.kernels.block_lists import find_first_blocks, pack_mask
from elastic_attention.kernels.modes import LISTS
from elastic_attention.kernels.reference import attend_modes
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.block_gradients import differentiate_blocks

pytestmark = pytest.mark.usefixtures("poisoned")
BLOCK, SCALE = 16, 0.25
LISTED = XAttentionConfig(block_size=64, stride=4, threshold=0.4)
WINDOW = StreamingConfig(num_sink_tokens=64, local_window=64, block_size=64)
TRIANGLE = TriangleConfig(num_sink_tokens=64, local_window=64, block_size=64, num_last_queries=10)


def make(device, batch, queries, keys, *, heads=4, kv_heads=2, width=16):
    shapes = (heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)
    return [torch.randn(batch, n, h, width, device=device).transpose(1, 2) for h, n in shapes]


def pack(lengths, device):
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    start = (length.cumsum(0) - length).int()
    places = dict(query_start=start, query_length=length, key_start=start, key_length=length)
    return Spans(**places, is_packed=True, max_query_length=max(lengths))


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(
    ("queries", "keys", "lengths", "has_dense"),
    [(50, 50, None, False), (21, 75, None, True), (64, 64, [33, 3, 28], True)],
)
def test_any_choice_of_blocks(device, queries, keys, lengths, has_dense):
    batch = 1 if lengths else 2
    q, k, v, grad = make(device, batch, queries, keys)
    spans = pack(lengths, device) if lengths else None
    sequences, blocks = len(lengths or q), -(-keys // BLOCK)
    first = find_first_blocks(sequences, queries, keys, BLOCK, spans).to(device)
    reads = torch.rand(sequences, 4, blocks, blocks, device=device) < 0.5
    diagonal = first[:, None] + torch.arange(blocks, device=device)
    reads[..., 0] = True
    reads |= (torch.arange(blocks, device=device) == diagonal[..., None])[:, None]
    lists = pack_mask(reads, first, BLOCK)
    end = torch.tensor(lengths or [keys] * 2, device=device)
    dense = torch.stack([end - 5, end], dim=1).int() if has_dense else None
    modes = torch.full((sequences, 2), LISTS, dtype=torch.int32, device=device)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    given = {"spans": spans, "lists": lists, "dense_rows": dense}
    out, lse = attend_modes(*leaves, modes, StreamingConfig(), SCALE, **given)
    wanted = torch.autograd.grad(out, leaves, grad)
    found = differentiate_blocks(grad, q, k, v, out.detach(), lse.detach(), reads, dense, BLOCK, SCALE, spans)
    assert_close(found, wanted)


@pytest.mark.parametrize(("pattern", "full"), [(LISTED, "full"), (WINDOW, LISTED), (TRIANGLE, "full")])
def test_blends_of_every_pair_are_differentiable(device, pattern, full):
    q, k, v, grad = make(device, 1, 140, 140, heads=2, kv_heads=1)
    route, given = torch.rand(1, 1, device=device), {"prompt_lengths": torch.tensor([135], device=device)}
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, route)]
        out = blended_attention(*leaves, pattern=pattern, full_pattern=full, backend=backend, **given)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, grad)))
    assert_close(*results)


@pytest.mark.parametrize(("pattern", "full"), [(LISTED, "full"), (WINDOW, LISTED), (TRIANGLE, "full")])
@pytest.mark.parametrize("is_packed", [False, True])
def test_inference_outside_of_no_grad_is_differentiable(device, pattern, full, is_packed):
    """A model whose weights want gradients is often called that way."""
    q, k, v, grad = make(device, 1, 150, 150)
    routes = torch.tensor([[True, False]], device=device)
    if is_packed:
        q, k, v, grad = (x[0].transpose(0, 1) for x in (q, k, v, grad))
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        options = {"cu_seqlens_q": torch.tensor([0, 150], device=device)} if is_packed else {}
        out = hybrid_attention(*leaves, routes, pattern=pattern, full_pattern=full, backend=backend, **options)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    assert_close(*results)


@pytest.mark.parametrize("pattern", [LISTED, TRIANGLE])
def test_packed_blends_with_gaps_are_those_of_each_sequence(device, pattern):
    places, rows = [(2, 70), (75, 1), (90, 64)], 160
    q, k, v, grad = make(device, 1, rows, rows)
    route = torch.rand(3, 2, device=device)
    start, length = (torch.tensor(x, dtype=torch.int32, device=device) for x in zip(*places, strict=True))
    columns = dict(query_start=start, query_length=length, key_start=start, key_length=length)
    spans = Spans(**columns, is_packed=True, max_query_length=70)

    def blend(*inputs, **given):
        leaves = [x.clone().requires_grad_() for x in inputs[:4]]
        out = blended_attention(*leaves, pattern=pattern, backend="triton", **given)
        return out.detach(), *torch.autograd.grad(out, leaves, inputs[4])

    results = blend(q, k, v, route, grad, spans=spans)
    for i, (first, count) in enumerate(places):
        part = slice(first, first + count)
        alone = blend(*(x[:, :, part] for x in (q, k, v)), route[i : i + 1], grad[:, :, part])
        assert_close((*(x[:, :, part] for x in results[:4]), results[4][i : i + 1]), alone)
        for x in results[:4]:
            x[:, :, part] = 0
    assert all(bool((x == 0).all()) for x in results[:4])
