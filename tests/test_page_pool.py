"""The paged cache against the cache of row tensors, step by step, through random programs of every verb."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from elastic_attention import CacheDepthError, StreamingConfig
from elastic_attention.attention import decode_attention
from elastic_attention.cache import ElasticCache
from elastic_attention.paging import LayerGroup, PagedCache, plain, verbs
from elastic_attention.paging import store as paging_store
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes

HEADS, WIDTH = 2, 16
CONFIG = StreamingConfig(num_sink_tokens=4, local_window=8, block_size=4)


def read_rows(elastic):
    """Keys and values of each row of the cache of row tensors."""
    rows = {}
    for group in elastic.groups:
        for i, (row, length) in enumerate(zip(group.rows, elastic.stored_lengths(group), strict=True)):
            rows[row] = group.keys[i, :length], group.values[i, :length]
    return [rows[row] for row in range(len(rows))]


def assert_pages_are_sound(store):
    """No page has two owners, the device knows what the host knows, and all that exists is counted."""
    pool, batch = store.pool, len(store.lengths)
    owned = [page for row, n in enumerate(pool.counts) for page in pool.table[row, :n].tolist()]
    assert sorted(owned + pool._free.tolist()) == list(range(len(pool.keys)))
    assert not any(pool.counts) or pool.table.max() < len(pool.keys)
    for row, n in enumerate(pool.counts):
        assert not pool.table[row, n:].any()
    assert store.modes.flatten().bool().tolist() == store._books.rings
    assert store.device_lengths.tolist() == [
        n - sum(part.counts[b] for part in store._staged) for b, n in enumerate(store.lengths)
    ]
    staged = sum(part.count_bytes() for part in store._staged) // batch * batch
    assert sum(store.count_allocated_bytes()) == len(pool.keys) * pool.page_bytes + staged
    assert bool(torch.isfinite(pool.keys).all()) and bool(torch.isfinite(pool.values).all())


class PagedProgram(RuleBasedStateMachine):
    """Both caches run the same program; what they hold must agree after every step."""

    keeps_all = False
    config = CONFIG
    page_size = 4

    @initialize(batch=st.integers(1, 3))
    def start(self, batch):
        pattern = build_pattern(self.config)
        self.paged = PagedCache(pattern, keeps_all=self.keeps_all, page_size=self.page_size)
        self.plain = ElasticCache(pattern, keeps_all=self.keeps_all)
        self.batch = batch
        self.late = set()  # rows that turned sparse and have not been evicted since

    @property
    def is_empty(self):
        return self.plain.groups is None

    @rule(data=st.data(), num_new=st.integers(1, 21), has_holes=st.booleans())
    def append(self, data, num_new, has_holes):
        keys, values = torch.randn(2, self.batch, HEADS, num_new, WIDTH)
        real = None
        if has_holes:
            column = st.lists(st.booleans(), min_size=num_new, max_size=num_new)
            real = torch.tensor([data.draw(column) for _ in range(self.batch)])
            for x in (keys, values):
                x.masked_fill_(~real[:, None, :, None], math.nan)
        knows = data.draw(st.booleans()) and real is not None
        self.paged.append(keys, values, real, counts=real.sum(1).tolist() if knows else None)
        self.plain.append(keys, values, real)

    @precondition(lambda self: not self.is_empty)
    @rule(data=st.data())
    def assign(self, data):
        routes = torch.tensor([[data.draw(st.booleans()) for _ in range(HEADS)] for _ in range(self.batch)])
        before = self.plain.routes.host().clone()
        try:
            self.plain.assign(HeadRoutes(routes))
        except ValueError:
            with pytest.raises(ValueError, match="cannot become full"):
                self.paged.assign(HeadRoutes(routes))
            return
        self.paged.assign(HeadRoutes(routes))
        turned = (routes & ~before).flatten().tolist()
        self.late |= {row for row, is_new in enumerate(turned) if is_new}

    @rule()
    def evict(self):
        self.paged.evict()
        self.plain.evict()
        self.late = set()

    @precondition(lambda self: not self.is_empty and not any(n == 0 for n in self.plain.lengths))
    @rule(count=st.integers(1, 10))
    def decode(self, count):
        for _ in range(count):
            keys, values = torch.randn(2, self.batch, HEADS, 1, WIDTH)
            for store in (self.paged, self.plain):
                store.append(keys, values)
            self.evict()
            q = torch.randn(self.batch, 2 * HEADS, 1, WIDTH)
            wanted = decode_attention(q, self.plain)
            torch.testing.assert_close(self.paged.attend_token(q), wanted, rtol=1e-5, atol=1e-6)

    @precondition(lambda self: not self.is_empty)
    @rule(data=st.data(), is_small=st.booleans())
    def crop(self, data, is_small):
        counts = [data.draw(st.integers(0, min(n, 3) if is_small else n)) for n in self.plain.lengths]
        try:
            self.plain.crop(counts)
        except CacheDepthError as error:
            with pytest.raises(CacheDepthError) as caught:
                self.paged.crop(counts)
            assert str(caught.value) == str(error)
            return
        self.paged.crop(counts)

    @precondition(lambda self: not self.is_empty)
    @rule(data=st.data())
    def select(self, data):
        indices = data.draw(st.lists(st.integers(0, self.batch - 1), min_size=1, max_size=4))
        self.paged.select(indices)
        self.plain.select(indices)
        self.late = {
            new * HEADS + row % HEADS for new, old in enumerate(indices) for row in self.late if row // HEADS == old
        }
        self.batch = len(indices)

    @precondition(lambda self: not self.is_empty)
    @rule(num_tokens=st.integers(0, 30))
    def reserve(self, num_tokens):
        self.paged.reserve(num_tokens)
        rings, size = self.paged._books.rings, self.config.num_sink_tokens + self.config.local_window
        for row, (pages, is_ring) in enumerate(zip(self.paged.pool.counts, rings, strict=True)):
            slots = self.plain.lengths[row // HEADS] + num_tokens
            assert pages * self.page_size >= (min(slots, size) if is_ring else slots)

    @precondition(lambda self: not self.is_empty)
    @rule()
    def deep_copy(self):
        """The original must not notice what happens to the copy, and the other way round."""
        original, self.paged = self.paged, copy.deepcopy(self.paged)
        assert self.paged.group is original.group
        for x in (original.pool.keys, original.pool.values, original.pool.table, original.modes):
            x.fill_(7)
        for part in original._staged:
            part.keys.fill_(math.nan)

    @invariant()
    def holds_what_the_other_holds(self):
        if self.is_empty:
            return
        assert self.paged.lengths == self.plain.lengths
        assert torch.equal(self.paged.routes.host(), self.plain.routes.host())
        assert self.paged.evicted == self.plain.evicted
        rows = self.paged.gather()
        lengths = rows.lengths.tolist()
        assert lengths == self.paged.stored_lengths()
        assert self.late or self.paged.count_stored() == self.plain.count_stored()
        for row, (keys, values) in enumerate(read_rows(self.plain)):
            span = slice(int(rows.starts[row]), int(rows.starts[row]) + lengths[row])
            if row in self.late:  # keeps until the next evict what its sequence has dropped before
                sink = min(self.config.num_sink_tokens, len(keys))
                assert torch.equal(rows.keys[span][:sink], keys[:sink])
                assert torch.equal(rows.keys[span][len(rows.keys[span]) - len(keys) + sink :], keys[sink:])
                continue
            assert torch.equal(rows.keys[span], keys) and torch.equal(rows.values[span], values)
        assert_pages_are_sound(self.paged)

    @invariant()
    def a_dense_view_is_that_of_row_tensors(self):
        wanted = self.plain.dense_view()
        view = self.paged.dense_view() if not self.is_empty else None
        if view is not None:
            assert wanted is not None
            assert torch.equal(view[0], wanted[0]) and torch.equal(view[1], wanted[1])


class KeepAllProgram(PagedProgram):
    """decode="full": sparse rows keep everything."""

    keeps_all = True


class OddPagesProgram(PagedProgram):
    """Pages that are neither blocks nor divide the ring."""

    config = StreamingConfig(num_sink_tokens=3, local_window=9, block_size=3)
    page_size = 8


TestPagedProgram = PagedProgram.TestCase
TestKeepAllProgram = KeepAllProgram.TestCase
TestOddPagesProgram = OddPagesProgram.TestCase
TestPagedProgram.settings = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True)
TestKeepAllProgram.settings = settings(max_examples=30, stateful_step_count=20, deadline=None, derandomize=True)
TestOddPagesProgram.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)


# Memory -----------------------------------------------------------------------------------------------------------

WIDE = StreamingConfig(num_sink_tokens=64, local_window=192, block_size=64)


def fill(num_tokens, routes, *, config=WIDE, dtype=torch.float32, group=None, **options):
    store = PagedCache(build_pattern(config), group=group, **options)
    keys = torch.randn(len(routes), HEADS, num_tokens, WIDTH).to(dtype)
    store.append(keys, -keys)
    store.assign(HeadRoutes(torch.tensor(routes)))
    store.evict()
    return store


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


# Routes that arrive late --------------------------------------------------------------------------------------------


class LateRoutes(HeadRoutes):
    """Routes that are still on their way, as from a GPU; `waits` counts how often somebody waited for them."""

    waits = 0

    @property
    def has_arrived(self):
        return self.waits > 0

    def host(self):
        self.waits += 1
        return super().host()


def prefill(store, routes, num_tokens=300):
    keys = torch.randn(1, HEADS, num_tokens, WIDTH)
    store.append(keys, -keys, counts=[num_tokens])
    store.assign(routes)
    store.evict()


def test_a_prefill_waits_two_layers_behind():
    """No layer's routes are waited for before two more layers are under way; then dense keys go."""
    group = LayerGroup()
    stores = [PagedCache(build_pattern(WIDE), group=group) for _ in range(6)]
    routes = [LateRoutes(torch.tensor([[True, False]])) for _ in stores]
    for i, (store, route) in enumerate(zip(stores, routes, strict=True)):
        prefill(store, route)
        assert [r.waits > 0 for r in routes] == [j < i - 1 for j in range(6)]
        assert sum(bool(s._staged) for s in stores) <= 2
    for store in stores:
        store.append(*torch.randn(2, 1, HEADS, 1, WIDTH))
        store.evict()
        assert not store._staged and store.lengths == [301]
    assert [len(s.pool.keys) for s in stores] == [5] * 6
    assert not group._waiting


def test_settling_early_leaves_the_line():
    group = LayerGroup()
    store, route = PagedCache(build_pattern(WIDE), group=group), LateRoutes(torch.tensor([[True, True]]))
    prefill(store, route)
    assert store.stored_lengths() == [256 - 64 + 300 % 64] * 2 and not group._waiting


def test_steps_wait_for_nothing():
    """Once settled, tokens are written without a look at the routes."""
    store, route = PagedCache(build_pattern(WIDE)), LateRoutes(torch.tensor([[True, False]]))
    prefill(store, route)
    store.settle()
    route.waits = -1000
    for _ in range(3):
        store.append(*torch.randn(2, 1, HEADS, 1, WIDTH))
        store.assign(route)
        store.evict()
    assert not store._staged and route.waits == -1000


def test_late_routes_that_revive_are_refused_when_they_arrive():
    store = fill(1000, [[True, False]])
    store.append(*torch.randn(2, 1, HEADS, 1, WIDTH))
    store.assign(LateRoutes(torch.tensor([[False, False]])))
    store.evict()
    with pytest.raises(ValueError, match="cannot become full"):
        store.settle()


def test_an_empty_cache_ignores_everything():
    store = PagedCache(build_pattern(CONFIG))
    store.evict()
    store.settle()
    store.crop([])
    store.select([0])
    assert store.dense_view() is None and store.count_allocated_bytes() == [] and store.evicted == []
