"""XAttention as a pattern: bounds before the data is seen, exact counts from lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.config import XAttentionConfig
from elastic_attention.kernels.block_lists import pack_mask
from elastic_attention.patterns import build_pattern, count_listed_pairs


@given(num_rows=st.integers(1, 5), first=st.integers(0, 4), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pairs_of_lists(num_rows, first, seed, data):
    block, num_blocks = 4, first + num_rows
    generator = torch.Generator().manual_seed(seed)
    blocks, last = torch.arange(num_blocks), torch.arange(first, num_blocks)[:, None]
    mask = torch.rand(2, num_rows, num_blocks, generator=generator) < 0.4
    mask = (mask | (blocks == 0) | (blocks == last)) & (blocks <= last)
    counts = pack_mask(mask[None], torch.tensor([first]), block).counts[0]
    tokens = mask.repeat_interleave(block, 1).repeat_interleave(block, 2)
    causal = torch.ones(num_blocks * block, num_blocks * block, dtype=torch.bool).tril()[first * block :]
    rows = (tokens & causal).sum(2)
    start = data.draw(st.integers(first * block, num_blocks * block))
    stop = data.draw(st.integers(start, num_blocks * block))
    wanted = rows[:, start - first * block : stop - first * block].sum(1)
    assert torch.equal(count_listed_pairs(counts, block, first, start, stop), wanted)


@given(start=st.integers(0, 50), length=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_what_is_known_before_the_data(start, length):
    pattern = build_pattern(XAttentionConfig())
    position = torch.arange(start + length)
    visible = pattern.is_visible(position[:, None], position)
    assert torch.equal(visible, torch.ones_like(visible).tril())
    assert pattern.count_pairs(start, start + length) == int(visible[start:].sum())
    assert pattern.count_held(start + length) == start + length and pattern.count_evicted(start + length) == 0


def test_responses_are_dense():
    rows = build_pattern(XAttentionConfig()).find_dense_rows(torch.tensor([0, 300]))
    assert rows.dtype == torch.int32 and rows.tolist() == [[0, 2**31 - 1], [300, 2**31 - 1]]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(threshold=0.0), r"threshold must lie in \(0, 1\], got 0.0"),
        (dict(threshold=1.5), "threshold.*1.5"),
        (dict(density=0.0), r"density must lie in \(0, 1\], got 0.0"),
        (dict(block_size=96), "block_size must be a power of two up to 128, got 96"),
        (dict(block_size=256), "block_size.*256"),
        (dict(stride=0), "stride must be a power of two up to 16, got 0"),
        (dict(stride=32), "stride.*32"),
        (dict(block_size=8, stride=16), "stride=16 must divide block_size=8"),
    ],
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        XAttentionConfig(**sizes)


def test_no_pattern_is_named():
    with pytest.raises(TypeError, match="StreamingConfig, TriangleConfig, XAttentionConfig"):
        build_pattern("xattention")
