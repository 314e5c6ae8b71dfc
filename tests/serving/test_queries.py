"""Mean queries in the slots of their tokens."""

import sys
import types

import pytest
import torch

from elastic_attention.config import RouterConfig
from elastic_attention.router import LayerRouter
from elastic_attention.serving.vllm.queries import QueryPages, average_ranks

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


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_decide_as_one(monkeypatch, ranks):
    """Only the order of a sum over H heads differs: at most 2 H roundings of the mean size of a query."""
    heads, tokens, prompts = 8, 20, 64
    query = torch.randn(prompts, tokens, heads, WIDTH)
    parts = [part.mean(2).mean(1, keepdim=True) for part in query.chunk(ranks, dim=2)]
    gathered = types.ModuleType("vllm.distributed")
    gathered.get_tensor_model_parallel_world_size = lambda: ranks
    gathered.tensor_model_parallel_all_gather = lambda own, dim: torch.cat([part[None] for part in parts], dim)
    monkeypatch.setitem(sys.modules, "vllm.distributed", gathered)
    together = [average_ranks(part) for part in parts]
    assert all(torch.equal(one, together[0]) for one in together)
    alone = query.mean(2).mean(1, keepdim=True)
    bound = 2 * heads * torch.finfo(torch.float32).eps * query.abs().mean()
    assert (together[0] - alone).abs().max() <= bound
    torch.manual_seed(2)
    router = LayerRouter(RouterConfig.for_head_dim(WIDTH, granularity="layer"))
    for weight in router.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    logits, wanted = (router.logits(pooled) for pooled in (together[0], alone))
    moved = (logits - wanted).abs().amax()
    assert moved <= 1e-5 * wanted.abs().amax()
    margin = (wanted[..., 1] - wanted[..., 0]).abs()
    assert (margin > 2 * moved).float().mean() > 0.99  # so that a route that turns is a rare tie
