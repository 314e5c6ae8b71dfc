"""The paged cache against the cache of row tensors, step by step, through random programs of every verb."""

import copy
import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from elastic_attention import CacheDepthError, StreamingConfig
from elastic_attention.attention import decode_attention
from elastic_attention.cache import ElasticCache
from elastic_attention.paging import PagedCache
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from made_pages import CONFIG, HEADS, WIDTH


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
