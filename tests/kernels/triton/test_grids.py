"""Launches of any number of sequences."""

import pytest
import torch

from elastic_attention import StreamingConfig, blended_attention
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.shapes import shape_grid


@pytest.mark.parametrize("num_rows", [1, 7, 12, 65_535, 65_536, 96_000, 131_071])
@pytest.mark.parametrize("row_bytes", [0, 1 << 20, 1 << 30])
def test_every_row_has_its_programs(num_rows, row_bytes):
    sections, tiles, rest = shape_grid(num_rows, 4, 9, row_bytes)
    assert (sections * rest, tiles) == (4 * num_rows, 9)
    assert rest <= 65_535  # what a launch takes in its third dimension


def test_rows_that_run_together_fit_the_cache():
    assert shape_grid(12, 4, 9, 8 << 20) == (16, 9, 3)
    assert shape_grid(12, 4, 9, 64 << 20) == (4, 9, 12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pack_of_thousands_of_sequences(device):
    sequences, tokens = 2500, 8
    length = torch.full((sequences,), tokens, dtype=torch.int32, device=device)
    start = (length.cumsum(0) - length).int()
    places = dict(query_start=start, query_length=length, key_start=start, key_length=length)
    spans = Spans(**places, is_packed=True, max_query_length=tokens, is_whole=True)
    shapes = ((1, sequences * tokens, heads, 128) for heads in (32, 8, 8))
    leaves = [torch.randn(*shape, device=device).bfloat16().transpose(1, 2).requires_grad_() for shape in shapes]
    route = torch.zeros(sequences, 8, device=device, requires_grad=True)
    out = blended_attention(*leaves, route, pattern=StreamingConfig(), spans=spans)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    last = [x[:, :, -tokens:].detach().requires_grad_() for x in leaves]
    alone = blended_attention(*last, route[-1:].detach(), pattern=StreamingConfig())
    for found, wanted in zip(gradients, torch.autograd.grad(alone.float().square().sum(), last), strict=True):
        torch.testing.assert_close(found[:, :, -tokens:], wanted, rtol=0.05, atol=0.05)
