"""The oracle of all modes against plain loops: lists, triangles, dense rows, padded and packed batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig
from elastic_attention.kernels.block_lists import count_rows, find_first_blocks, pack_mask
from elastic_attention.kernels.modes import FULL, LISTS, STREAMING, TRIANGLE
from elastic_attention.kernels.reference import attend_modes
from elastic_attention.kernels.spans import Spans
from oracles import is_visible

CONFIG = StreamingConfig(num_sink_tokens=4, local_window=8, block_size=4)
LIST_BLOCK = 8  # lists have a block of their own


def make_lists(modes, num_heads, spans, queries, keys, seed):
    """Random lists with the diagonal and block 0; also as a mask (B, H, M, N)."""
    num_rows, num_blocks = count_rows(queries, keys, LIST_BLOCK, spans)
    first = find_first_blocks(len(modes), queries, keys, LIST_BLOCK, spans)
    last = first[:, None] + torch.arange(num_rows)
    blocks = torch.arange(num_blocks)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(modes), num_heads, num_rows, num_blocks, generator=generator) < 0.4
    diagonal = last[:, None, :, None]
    mask = (mask | (blocks == 0) | (blocks == diagonal)) & (blocks <= diagonal)
    return pack_mask(mask, first, LIST_BLOCK), mask, first


def attend_slowly(q, k, v, modes, mask, first, dense, scale):
    """One sequence: q (H, T, D), k and v (G, S, D), mask (H, M, N)."""
    group, front = len(q) // len(k), k.shape[1] - q.shape[1]
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:2])
    for h in range(len(q)):
        for t in range(q.shape[1]):
            p, mode = front + t, int(modes[h // group])
            is_dense = int(dense[0]) <= p < int(dense[1])
            keys = []
            for j in range(p + 1):
                reads = {
                    FULL: True,
                    STREAMING: is_visible(CONFIG, p, j),
                    TRIANGLE: is_dense or is_visible(CONFIG, p, j),
                    LISTS: is_dense or bool(mask[h, p // LIST_BLOCK - first, j // LIST_BLOCK]),
                }[mode]
                keys += [j] if reads else []
            scores = q[h, t].double() @ k[h // group, keys].double().T * scale
            out[h, t] = (scores.softmax(0) @ v[h // group, keys].double()).float()
            lse[h, t] = scores.logsumexp(0)
    return out, lse


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=3),
    is_packed=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
def test_every_mode_in_every_layout(lengths, is_packed, seed):
    torch.manual_seed(seed)
    lengths = [(t, t + before) for t, before in lengths]
    queries, keys = (torch.tensor(x, dtype=torch.int32) for x in zip(*lengths, strict=True))
    starts = [x.cumsum(0).int() - x if is_packed else x.max() - x for x in (queries, keys)]
    spans = Spans(
        query_start=starts[0],
        query_length=queries,
        key_start=starts[1],
        key_length=keys,
        is_packed=is_packed,
        max_query_length=int(queries.max()),
    )
    batch = 1 if is_packed else len(lengths)
    num_queries, num_keys = (int(x.sum() if is_packed else x.max()) for x in (queries, keys))
    q = torch.randn(batch, 4, num_queries, 4)
    k, v = torch.randn(batch, 2, num_keys, 4), torch.randn(batch, 2, num_keys, 4)
    modes = torch.randint(0, 4, (len(lengths), 2), dtype=torch.int32)
    dense = torch.randint(0, 30, (len(lengths), 2), dtype=torch.int32).sort(1).values
    lists, mask, first = make_lists(modes, 4, spans, num_queries, num_keys, seed)
    out, lse = attend_modes(q, k, v, modes, CONFIG, 0.7, spans=spans, lists=lists, dense_rows=dense)
    inside = torch.zeros(batch, num_queries, dtype=torch.bool)
    for row, (t, s) in enumerate(lengths):
        b = 0 if is_packed else row
        rows = slice(int(starts[0][row]), int(starts[0][row]) + t)
        cols = slice(int(starts[1][row]), int(starts[1][row]) + s)
        inside[b, rows] = True
        wanted, wanted_lse = attend_slowly(
            q[b, :, rows], k[b, :, cols], v[b, :, cols], modes[row], mask[row], int(first[row]), dense[row], 0.7
        )
        torch.testing.assert_close(out[b, :, rows], wanted)
        torch.testing.assert_close(lse[b, :, rows], wanted_lse)
    outside = ~inside[:, None].expand(lse.shape)
    assert not out[outside].any() and bool((lse[outside] == -math.inf).all())


@given(num_queries=st.integers(1, 20), before=st.integers(0, 20), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_plain_batches_are_spans_that_fill_them(num_queries, before, seed):
    torch.manual_seed(seed)
    num_keys = num_queries + before
    q, k, v = torch.randn(2, 2, num_queries, 4), torch.randn(2, 2, num_keys, 4), torch.randn(2, 2, num_keys, 4)
    modes = torch.randint(0, 4, (2, 2), dtype=torch.int32)
    lists, _, _ = make_lists(modes, 2, None, num_queries, num_keys, seed)
    full = [torch.full((2,), n, dtype=torch.int32) for n in (0, num_queries, 0, num_keys)]
    spans = Spans(
        query_start=full[0],
        query_length=full[1],
        key_start=full[2],
        key_length=full[3],
        is_packed=False,
        max_query_length=num_queries,
    )
    plain = attend_modes(q, k, v, modes, CONFIG, 0.5, lists=lists)
    ragged_lists = make_lists(modes, 2, spans, num_queries, num_keys, seed)
    assert plain[0].shape == q.shape and ragged_lists[2].tolist() == [before // LIST_BLOCK] * 2
    listless = modes.masked_fill(modes == LISTS, FULL)
    for one, other in zip(
        attend_modes(q, k, v, listless, CONFIG, 0.5),
        attend_modes(q, k, v, listless, CONFIG, 0.5, spans=spans),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_lists_that_are_missing_are_named():
    q = torch.randn(1, 1, 4, 4)
    for mode in (LISTS, 7):
        with pytest.raises(ValueError, match=f"mode {mode}"):
            attend_modes(q, q, q, torch.tensor([[mode]]), CONFIG, 1.0)
