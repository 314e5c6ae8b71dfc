"""Packed lists: what goes in comes out, rows find their place, and the promised memory is not exceeded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.kernels.block_lists import count_entries, count_rows, find_first_blocks, pack_mask
from elastic_attention.kernels.spans import Spans


def make_spans(lengths, is_packed):
    """Spans of (queries, keys) pairs, packed one behind the other or padded on the left."""
    queries, keys = (torch.tensor(x, dtype=torch.int32) for x in zip(*lengths, strict=True))
    if is_packed:
        starts = [torch.cat([x.new_zeros(1), x.cumsum(0)[:-1].int()]) for x in (queries, keys)]
    else:
        starts = [x.max() - x for x in (queries, keys)]
    return Spans(
        query_start=starts[0],
        query_length=queries,
        key_start=starts[1],
        key_length=keys,
        is_packed=is_packed,
        max_query_length=int(queries.max()),
    )


@given(
    firsts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    num_rows=st.integers(1, 6),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_read_back(firsts, num_rows, seed, share):
    generator = torch.Generator().manual_seed(seed)
    num_blocks = max(firsts) + num_rows
    last = torch.tensor(firsts)[:, None] + torch.arange(num_rows)
    causal = torch.arange(num_blocks) <= last[:, None, :, None]
    mask = (torch.rand(len(firsts), 2, num_rows, num_blocks, generator=generator) < share) & causal
    lists = pack_mask(mask, torch.tensor(firsts), 128)
    assert torch.equal(lists.to_mask(torch.tensor(firsts), num_blocks), mask)
    assert lists.counts.dtype == torch.int32 and lists.indices.dtype == torch.int16
    assert torch.equal(lists.counts, mask.sum(3, dtype=torch.int32))
    # The address that the kernels compute.
    for b, first in enumerate(firsts):
        for r in range(num_rows):
            m = first + r
            offset = m * (m + 1) // 2 - first * (first + 1) // 2
            row = lists.indices[b, 1, offset : offset + int(lists.counts[b, 1, r])]
            assert row.tolist() == mask[b, 1, r].nonzero()[:, 0].tolist()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70)), min_size=1, max_size=4), is_packed=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_every_sequence_finds_room(lengths, is_packed):
    block = 16
    lengths = [(t, t + more) for t, more in lengths]
    spans = make_spans(lengths, is_packed)
    total_keys = sum(s for _, s in lengths) if is_packed else max(s for _, s in lengths)
    total_queries = sum(t for t, _ in lengths) if is_packed else max(t for t, _ in lengths)
    num_rows, num_blocks = count_rows(total_queries, total_keys, block, spans)
    capacity = count_entries(num_rows, num_blocks)
    firsts = find_first_blocks(len(lengths), total_queries, total_keys, block, spans)
    for (queries, keys), first in zip(lengths, firsts.tolist(), strict=True):
        assert first == (keys - queries) // block
        blocks = -(-keys // block)
        assert blocks - first <= num_rows and blocks <= num_blocks
        assert blocks * (blocks + 1) // 2 - first * (first + 1) // 2 <= capacity


def test_plain_batches_and_memory():
    assert count_rows(40, 100, 16) == (4, 7)  # 60 tokens before: the first block of queries is number 3
    assert find_first_blocks(2, 40, 100, 16, None).tolist() == [3, 3]
    num_rows, num_blocks = count_rows(1 << 17, 1 << 17, 128)
    assert 2 * 32 * count_entries(num_rows, num_blocks) == 32 * 1024 * 1025  # bytes at 128K tokens, 32 heads
    with pytest.raises(ValueError, match="40000 key blocks are more than 32767"):
        count_entries(1, 40000)
