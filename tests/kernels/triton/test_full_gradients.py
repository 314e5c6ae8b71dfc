"""Full heads whose gradient comes from elsewhere: the same gradients, and nothing left unwritten."""

import pytest
import torch

from elastic_attention import StreamingConfig, blended_attention
from elastic_attention.kernels import full_gradients
from elastic_attention.kernels.full_gradients import FullHeads, has_full_gradients, round_length
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton import backward
from elastic_attention.kernels.triton.blended import blend_triton
from elastic_attention.kernels.triton.prefill import attend_triton

SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
LENGTHS = (70, 24, 90)
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on the CPU need Triton's interpreter")


def pack(lengths, device):
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    start = (length.cumsum(0) - length).int()
    places = dict(query_start=start, query_length=length, key_start=start, key_length=length)
    return Spans(**places, is_packed=True, max_query_length=max(lengths), is_whole=True)


@pytest.fixture
def anywhere(monkeypatch):
    """Heads of 32 tokens are long, and the way is open on a CPU too."""
    monkeypatch.setattr(full_gradients, "LEAST_TOKENS", 32)
    monkeypatch.setattr(backward, "has_full_gradients", lambda q: True)


@on_cpu
@pytest.mark.usefixtures("anywhere", "poisoned")
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("attend", [None, attend_triton])
def test_gradients_are_the_same(lengths, attend, monkeypatch):
    calls, differentiate = [], full_gradients._differentiate
    monkeypatch.setattr(
        full_gradients, "_differentiate", lambda *args, **kwargs: calls.append(args) or differentiate(*args, **kwargs)
    )
    batch, tokens = (2, 70) if lengths is None else (1, sum(lengths))
    spans = None if lengths is None else pack(lengths, "cpu")
    route = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.25, 0.0]])[: batch if lengths is None else 3]
    inputs = [torch.randn(batch, tokens, h, 16).transpose(1, 2) for h in (4, 2, 2)]
    grad, found = torch.randn_like(inputs[0]), []
    for is_fast in (False, True):
        leaves = [x.clone().requires_grad_() for x in (*inputs, route)]
        out = blend_triton(*leaves, SMALL, 0.25, spans=spans, attend=attend, is_fast=is_fast)
        found.append(torch.autograd.grad(out, leaves, grad))
    assert len(calls) == (3 if lengths is None else 2)  # full heads of long sequences, no other
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@on_cpu
def test_who_does_not_ask_never_comes_to_fast_gradients(monkeypatch):
    monkeypatch.setattr(backward, "FullHeads", None)  # a call of it would raise
    q, k, v = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
    blend_triton(q, k, v, torch.zeros(1, 2), SMALL, 0.25).sum().backward()
    blended_attention(q, k, v, torch.zeros(1, 2), pattern=SMALL, fast_gradients=True).sum().backward()  # on a CPU


@pytest.mark.parametrize("taken", [(0, 40, 0, 50), (0, 20, 0, 20)])
def test_short_and_appended_sequences_stay(monkeypatch, taken):
    monkeypatch.setattr(full_gradients, "LEAST_TOKENS", 32)
    q, k = torch.empty(1, 2, taken[1], 16), torch.empty(1, 2, taken[3], 16)
    heads = FullHeads(torch.zeros(1, 2), None, q, k)
    assert bool((heads.others == 0).all()) and not list(heads._list())


def test_few_lengths_and_little_padding():
    lengths = range(16_384, 65_537)
    assert len({round_length(n) for n in lengths}) <= 33
    assert all(n <= round_length(n) < 1.07 * n for n in lengths)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cudnn(device):
    lengths = (17_000, 3000, 16_384)
    shapes = ((1, sum(lengths), h, 128) for h in (8, 2, 2, 8))
    q, k, v, grad = (torch.randn(*shape, device=device, dtype=torch.bfloat16).transpose(1, 2) for shape in shapes)
    if not has_full_gradients(q):
        pytest.skip("cuDNN is not the faster one here")
    route = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], device=device)
    found = []
    for is_fast in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, route)]
        options = {"spans": pack(lengths, device), "fast_gradients": is_fast}
        out = blended_attention(*leaves, pattern=StreamingConfig(), **options)
        found.append(torch.autograd.grad(out, leaves, grad))
    for one, other in zip(*found, strict=True):
        error = (one.float() - other.float()).abs().max()
        assert error <= 2 * torch.finfo(torch.bfloat16).eps * one.float().abs().max()
