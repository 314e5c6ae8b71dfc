"""Virtual sequences read exactly the keys of the block rule, whatever the pages, the chunks and the routes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig
from elastic_attention.patterns import StreamingPattern
from elastic_attention.serving.policy import NEVER
from elastic_attention.serving.virtual import Span, cut_pieces, gather_order, make_tables, virtual_starts

HEADS = 3


@st.composite
def steps(draw):
    """A step of an engine: spans of requests, page size, pattern."""
    page = draw(st.sampled_from([1, 2, 4]))
    block = page * draw(st.integers(1, 3))
    pattern = StreamingConfig(
        num_sink_tokens=block * draw(st.integers(1, 2)), local_window=block * draw(st.integers(1, 3)), block_size=block
    )
    spans = []
    for _ in range(draw(st.integers(1, 4))):
        total = draw(st.integers(1, 60))
        new = draw(st.integers(1, total))
        sparse_from = draw(st.sampled_from([0, NEVER, draw(st.integers(0, 60))]))
        spans.append(Span(num_new=new, num_tokens=total, sparse_from=sparse_from))
    return spans, page, pattern, draw(st.integers(0, 10_000))


def list_read_keys(spans, page, pattern, routes, pages):
    """(request, head, position of the query) -> what a stock kernel reads: pages and offsets, in order."""
    pieces = cut_pieces(spans, pattern.block_size)
    table, lengths = (part.tolist() for part in make_tables(pieces, pages, routes, page, pattern))
    starts, order = virtual_starts(pieces, HEADS).tolist(), gather_order(pieces, HEADS).tolist()
    owner = [(r, s.num_tokens - s.num_new + i) for r, s in enumerate(spans) for i in range(s.num_new)]
    found = {}
    for v, (first, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        for row in range(first, stop):
            token, head = divmod(order[row], HEADS)
            request, position = owner[token]
            visible = lengths[v] - (stop - row - 1)  # causal, counted from the end
            found[request, head, position] = [(table[v][k // page], k % page) for k in range(visible)]
    return found


@given(steps())
@settings(max_examples=150)
def test_every_query_reads_what_the_rule_says(step):
    spans, page, pattern, seed = step
    generator = torch.Generator().manual_seed(seed)
    width = -(-max(s.num_tokens for s in spans) // page)
    pages = torch.randperm(len(spans) * width, generator=generator).view(len(spans), width).int()
    routes = torch.rand(len(spans), HEADS, generator=generator) < 0.5
    found = list_read_keys(spans, page, pattern, routes, pages)
    positions = torch.arange(max(s.num_tokens for s in spans))
    visible = StreamingPattern(pattern).is_visible(positions[:, None], positions).tolist()
    pages, routes = pages.tolist(), routes.tolist()
    assert len(found) == HEADS * sum(s.num_new for s in spans)
    for (request, head, position), keys in found.items():
        is_sparse = routes[request][head] and position >= spans[request].sparse_from
        seen = [k for k in range(position + 1) if visible[position][k] or not is_sparse]
        assert keys == [(pages[request][k // page] * HEADS + head, k % page) for k in seen]


def test_decoding_is_one_piece_a_request_in_order():
    spans = [Span(num_new=1, num_tokens=n, sparse_from=0) for n in (5, 90, 33)]
    pieces = cut_pieces(spans, 16)
    assert pieces.request.tolist() == [0, 1, 2] and pieces.count.tolist() == [1, 1, 1]
    assert gather_order(pieces, HEADS).tolist() == list(range(9))
