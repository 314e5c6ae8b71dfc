"""How many pages a cache takes, when it grows, and that nothing moves while a graph is replayed."""

import copy
import dataclasses
import math

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.paging import PagedCache, plain, verbs
from elastic_attention.paging import store as paging_store
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from made_pages import CONFIG, HEADS, WIDE, WIDTH, fill


def test_sizes_of_pages():
    """As large as ends with the ring, so that a full ring wastes nothing."""
    for sink, window, block, wanted in ((128, 2048, 128, 128), (64, 512, 64, 64), (64, 192, 64, 128), (16, 48, 16, 64)):
        config = StreamingConfig(num_sink_tokens=sink, local_window=window, block_size=block)
        assert PagedCache(build_pattern(config)).page_size == wanted
    with pytest.raises(ValueError, match="page_size=96 must be a power of two"):
        PagedCache(build_pattern(CONFIG), page_size=96)


def test_a_page_is_no_smaller_than_what_the_kernels_take(monkeypatch):
    monkeypatch.setattr(paging_store, "verbs_for", lambda device: dataclasses.replace(verbs.PLAIN, least_page=16))
    with pytest.raises(ValueError, match="page_size=8 is too small on cpu; use 16 or more"):
        fill(10, [[True, False]], page_size=8)
    assert fill(10, [[True, False]], page_size=16).pool is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 128, 129, 256, 257, 1000])
def test_pages_after_a_prompt_to_the_page(dtype, num_tokens):
    """A full row takes its tokens, a sparse one no more than the ring; nothing besides, and nothing for an instant."""
    store = fill(num_tokens, [[True, False], [True, True]], dtype=dtype)
    full, ring = -(-num_tokens // 128), -(-min(num_tokens, 256) // 128)
    page_bytes = 2 * 128 * WIDTH * dtype.itemsize
    assert store.count_allocated_bytes() == [(full + ring) * page_bytes, 2 * ring * page_bytes]
    assert len(store.pool.keys) == full + 3 * ring and store.moves <= 2


def test_growth_is_bounded():
    store = fill(1000, [[True, False]])
    for n in range(1001, 1600):
        store.append(torch.randn(1, HEADS, 1, WIDTH), torch.randn(1, HEADS, 1, WIDTH))
        store.evict()
        needed = -(-n // 128) + 2
        assert needed <= len(store.pool.keys) <= max(needed, needed + needed // 8)


def test_growing_is_rare():
    store = fill(1000, [[False, False]], page_size=4)
    moves = store.moves
    for _ in range(240):
        store.append(*torch.randn(2, 1, HEADS, 1, WIDTH))
        store.evict()
    assert len(store.pool.keys) <= 2 * 310 * 9 // 8 and store.moves - moves <= 4


def test_pages_of_rows_that_turn_sparse_are_given_back():
    store = fill(4000, [[False, False]])
    store.assign(HeadRoutes(torch.tensor([[True, True]])))
    store.evict()
    assert len(store.pool.keys) == 4 and store.stored_lengths() == [64 + 192 - 64 + 4000 % 64] * 2


def test_sequences_that_leave_take_their_pages_along():
    store = fill(2000, [[False, True]] * 4)
    store.select([2])
    assert store.count_allocated_bytes() == [(16 + 2) * store.pool.page_bytes]


def test_nothing_moves_between_reserves():
    """Addresses stay, the table is not even rewritten, and the host's books follow replays of a graph."""
    store = fill(300, [[True, False], [False, False]])
    store.reserve(200)
    assert store.pool.num_free == 0
    moves, table = store.moves, store.pool.table.clone()
    addresses = [x.data_ptr() for x in store._pages()]
    twin = copy.deepcopy(store)
    tokens = torch.randn(2, 200, 2, HEADS, 1, WIDTH)
    for keys, values in tokens.unbind(1):
        store.append(keys, values)
        store.evict()
    assert store.moves == moves and torch.equal(store.pool.table, table)
    assert [x.data_ptr() for x in store._pages()] == addresses
    for keys, values in tokens.unbind(1):  # what a graph does: the kernels run, the books do not
        plain.append_token(keys, values, *twin._pages(), WIDE)
        twin.advance(1)
    assert twin.lengths == store.lengths and twin.evicted == store.evicted
    assert torch.equal(twin.gather().keys, store.gather().keys)
    store.append(*torch.randn(2, 2, HEADS, 1, WIDTH))
    store.evict()
    assert store.moves == moves  # 512 slots were reserved for 500 tokens


def test_freed_pages_are_cleared():
    """Kernels may load slots without tokens; what another sequence left there must not be nan."""
    store = fill(100, [[False, False]] * 2)
    store.pool.keys[:] = store.pool.values[:] = math.nan
    store.pool.release([0, 1])
    assert torch.isfinite(store.pool.keys).flatten(1).all(1).tolist() == [True, True, False, False]


def test_an_empty_cache_ignores_everything():
    store = PagedCache(build_pattern(CONFIG))
    store.evict()
    store.settle()
    store.crop([])
    store.select([0])
    assert store.dense_view() is None and store.count_allocated_bytes() == [] and store.evicted == []
