"""Cutting attention into pieces: every query once, and exactly the keys of the rule."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.kernels.pieces import cut_causal, cut_streaming
from oracles import streaming_configs, visible_mask


def draw_mask(pieces, num_queries, num_keys):
    counts = torch.zeros(num_queries, num_keys, dtype=torch.int)
    for piece in pieces:
        for i in range(piece.count):
            for t in range(piece.length):
                query = piece.start + i * piece.length + t
                for part in piece.parts:
                    first = part.start + i * part.step
                    counts[query, first : first + (t + 1 if part.is_causal else part.length)] += 1
    return counts


@given(config=streaming_configs(), num_queries=st.integers(1, 90), before=st.integers(0, 90))
@settings(max_examples=60)
def test_pieces_draw_the_mask_with_each_pair_once(config, num_queries, before):
    num_keys = num_queries + before
    wanted = visible_mask(config, num_keys)[before:]
    assert torch.equal(draw_mask(cut_streaming(num_queries, num_keys, config), num_queries, num_keys), wanted.int())
    causal = torch.ones(num_keys, num_keys).tril()[before:].int()
    assert torch.equal(draw_mask(cut_causal(num_queries, num_keys), num_queries, num_keys), causal)


@given(config=streaming_configs(), num_queries=st.integers(1, 5000))
@settings(max_examples=30)
def test_the_number_of_pieces_does_not_grow_with_the_length(config, num_queries):
    assert len(cut_streaming(num_queries, num_queries, config)) <= 3
