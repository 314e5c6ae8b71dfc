"""Triangle attention: its mask, its pair counts and its dense rows say the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.config import TriangleConfig
from elastic_attention.patterns import build_pattern
from oracles import visible_mask


@st.composite
def triangle_configs(draw):
    block = draw(st.sampled_from([1, 4, 8]))
    return TriangleConfig(
        num_sink_tokens=block * draw(st.integers(1, 2)),
        local_window=block * draw(st.integers(1, 3)),
        block_size=block,
        num_last_queries=draw(st.integers(1, 20)),
    )


@given(config=triangle_configs(), prompt=st.integers(0, 80), response=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_the_last_queries_of_the_prompt_read_everything(config, prompt, response):
    pattern, num_tokens = build_pattern(config), prompt + response
    position = torch.arange(num_tokens)
    wanted = visible_mask(config, num_tokens)
    for row in range(max(0, prompt - config.num_last_queries), prompt):
        wanted[row, : row + 1] = True
    assert torch.equal(pattern.is_visible(position[:, None], position, prompt), wanted)
    rows = wanted.sum(1).tolist()
    for start in range(0, num_tokens + 1, 5):
        assert pattern.count_pairs(start, num_tokens, prompt) == sum(rows[start:])
        assert pattern.count_pairs(0, start, prompt) == sum(rows[:start])
    start, stop = pattern.find_dense_rows(torch.tensor([prompt]))[0].tolist()
    assert (start, stop) == (max(0, prompt - config.num_last_queries), prompt)


@given(config=triangle_configs(), num_tokens=st.integers(0, 80))
@settings(max_examples=30, deadline=None)
def test_without_a_prompt_it_is_streaming(config, num_tokens):
    pattern, streaming = build_pattern(config), build_pattern(config.streaming)
    position = torch.arange(num_tokens)
    assert torch.equal(pattern.is_visible(position[:, None], position), visible_mask(config, num_tokens))
    assert pattern.count_pairs(0, num_tokens) == streaming.count_pairs(0, num_tokens)
    assert pattern.count_held(num_tokens) == streaming.count_held(num_tokens)


def test_dense_rows_are_int32_on_the_device_of_the_lengths():
    rows = build_pattern(TriangleConfig()).find_dense_rows(torch.tensor([100, 500]))
    assert rows.dtype == torch.int32 and rows.tolist() == [[0, 100], [372, 500]]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(num_last_queries=0), "num_last_queries must be at least 1, got 0"),
        (dict(local_window=100), "local_window=100.*use 128"),
        (dict(block_size=0), "block_size must be at least 1, got 0"),
    ],
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        TriangleConfig(**sizes)
