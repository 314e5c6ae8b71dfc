"""The streaming rule as a mask, as pair counts and as tokens to keep; all three must agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig
from elastic_attention.patterns import build_pattern
from oracles import streaming_configs, visible_mask


@given(config=streaming_configs(), num_tokens=st.integers(0, 150))
@settings(max_examples=60)
def test_mask_counts_and_held_tokens_agree(config, num_tokens):
    pattern, wanted = build_pattern(config), visible_mask(config, num_tokens)
    positions = torch.arange(num_tokens)
    assert torch.equal(pattern.is_visible(positions[:, None], positions[None]), wanted)
    rows = wanted.sum(1).tolist()
    for start in range(0, num_tokens + 1, 7):
        assert pattern.count_pairs(start, num_tokens) == sum(rows[start:])
    for position, reads in enumerate(rows):
        assert pattern.count_held(position + 1) == reads
    assert pattern.count_held(0) == pattern.count_evicted(0) == 0


@given(config=streaming_configs(), num_tokens=st.integers(1, 150))
@settings(max_examples=40)
def test_what_is_held_is_what_this_and_every_later_query_may_read(config, num_tokens):
    pattern = build_pattern(config)
    evicted, sink = pattern.count_evicted(num_tokens), config.num_sink_tokens
    mask = visible_mask(config, num_tokens + 2 * config.block_size)
    gone = set(range(sink, sink + evicted))
    assert not mask[num_tokens - 1 :, sorted(gone)].any()
    assert [k for k in range(num_tokens) if k not in gone] == mask[num_tokens - 1].nonzero()[:, 0].tolist()


@given(config=streaming_configs(), num_tokens=st.integers(1, 120), new=st.integers(1, 40))
@settings(max_examples=40)
def test_closing_the_gap_leaves_a_shorter_sequence_under_the_same_rule(config, num_tokens, new):
    """Why a compacted cache needs no positions."""
    pattern = build_pattern(config)
    sink, evicted = config.num_sink_tokens, pattern.count_evicted(num_tokens)
    kept = [k for k in range(num_tokens + new) if not sink <= k < sink + evicted]
    whole = visible_mask(config, num_tokens + new)[num_tokens:][:, kept]
    short = visible_mask(config, num_tokens + new - evicted)[num_tokens - evicted :]
    assert torch.equal(whole, short)


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(local_window=100, block_size=64), "local_window=100.*block_size=64.*use 128"),
        (dict(num_sink_tokens=1, block_size=64, local_window=64), "num_sink_tokens=1.*use 64"),
        (dict(num_sink_tokens=0), "num_sink_tokens=0"),
        (dict(local_window=0), "local_window=0"),
        (dict(local_window=-128), "local_window=-128.*use 128"),
        (dict(block_size=0), "block_size must be at least 1, got 0"),
    ],
)
def test_sizes_that_are_no_multiple_of_the_block(sizes, message):
    with pytest.raises(ValueError, match=message):
        StreamingConfig(**sizes)
