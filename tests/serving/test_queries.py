"""Mean queries in the slots of their tokens."""

import torch

from elastic_attention.serving.vllm.queries import QueryPages

BLOCKS, HEADS, PAGE, WIDTH = 6, 2, 4, 8


def make_pages(dtype=torch.float32):
    pages = QueryPages()
    pages.make_room(torch.zeros(BLOCKS, HEADS, PAGE, 2 * WIDTH, dtype=dtype))
    return pages


def test_what_is_written_in_chunks_is_read_by_position():
    pages, query = make_pages(), torch.randn(10, 3, WIDTH)
    table = torch.tensor([[5, 0, 2], [1, 3, 4]])
    slots = (table[0][torch.arange(10) // PAGE] * PAGE + torch.arange(10) % PAGE).long()
    for chunk in (slice(0, 3), slice(3, 9), slice(9, 10)):
        pages.write(query[chunk], slots[chunk])
    positions = torch.tensor([[0, 9, 4], [0, 0, 0]])
    read = pages.read(table, positions)
    assert torch.equal(read[0, :, 0], query.mean(1)[positions[0]])
    assert not read[1].any()


def test_padding_overwrites_nobody():
    pages, last = make_pages(), BLOCKS * PAGE - 1
    pages.write(torch.ones(1, 3, WIDTH), torch.tensor([last]))
    pages.write(torch.full((4, 3, WIDTH), 7.0), torch.tensor([0, -1, -1]))  # more queries than slots, too
    table = torch.arange(BLOCKS)[None]
    assert pages.read(table, torch.tensor([[last]])).eq(1).all() and pages.read(table, torch.tensor([[0]])).eq(7).all()


def test_before_there_is_a_cache_nothing_is_kept():
    QueryPages().write(torch.ones(1, 3, WIDTH), torch.tensor([0]))
