"""The ragged cache against lists of (position, value), through random programs of every method."""

import copy
import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from elastic_attention import CacheDepthError, StreamingConfig
from elastic_attention.cache import ElasticCache
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from oracles import is_visible

HEADS, WIDTH = 2, 4
CONFIG = StreamingConfig(num_sink_tokens=4, local_window=8, block_size=4)


def held_positions(num_tokens):
    """What the newest of `num_tokens` queries may read; also what later ones may."""
    return [p for p in range(num_tokens) if is_visible(CONFIG, num_tokens - 1, p)]


class CacheProgram(RuleBasedStateMachine):
    """The model: per sequence and KV head a list of positions and the values stored there."""

    keeps_all = False

    @initialize(batch=st.integers(1, 3))
    def start(self, batch):
        self.store = ElasticCache(build_pattern(CONFIG), keeps_all=self.keeps_all)
        self.lengths = [0] * batch
        self.values = [[{} for _ in range(HEADS)] for _ in range(batch)]  # position -> number, once stored
        self.held = [[[] for _ in range(HEADS)] for _ in range(batch)]
        self.routes = [[False] * HEADS for _ in range(batch)]
        self.counter = 0

    def is_evicting(self, b, g):
        return self.routes[b][g] and not self.keeps_all

    @rule(data=st.data(), num_new=st.integers(1, 14), has_holes=st.booleans())
    def append(self, data, num_new, has_holes):
        batch = len(self.lengths)
        column = st.lists(st.booleans(), min_size=num_new, max_size=num_new)
        real = [data.draw(column) if has_holes else [True] * num_new for _ in range(batch)]
        numbers = torch.arange(self.counter, self.counter + batch * HEADS * num_new).view(batch, HEADS, num_new)
        self.counter += numbers.numel()
        keys = numbers[..., None].expand(-1, -1, -1, WIDTH).float().clone()
        mask = torch.tensor(real)
        keys.masked_fill_(~mask[:, None, :, None], math.nan)
        self.store.append(keys, -keys, mask if has_holes else None)
        for b in range(batch):
            for t in range(num_new):
                if real[b][t]:
                    for g in range(HEADS):
                        self.values[b][g][self.lengths[b]] = int(numbers[b, g, t])
                        self.held[b][g].append(self.lengths[b])
                    self.lengths[b] += 1

    @precondition(lambda self: self.store.groups is not None)
    @rule(data=st.data())
    def assign(self, data):
        routes = [[data.draw(st.booleans()) for _ in range(HEADS)] for _ in self.lengths]
        pairs = [(b, g) for b in range(len(routes)) for g in range(HEADS)]
        lost = [len(self.held[b][g]) < self.lengths[b] for b, g in pairs]
        # Tokens leave a sequence for all its sparse heads at once, so the books are kept by sequence.
        dropped = [any(len(h) < n for h in held) for held, n in zip(self.held, self.lengths, strict=True)]
        if any(
            was and dropped[b] and self.routes[b][g] and not routes[b][g]
            for (b, g), was in zip(pairs, lost, strict=True)
        ):
            with pytest.raises(ValueError, match="cannot become full"):
                self.store.assign(HeadRoutes(torch.tensor(routes)))
            return
        self.store.assign(HeadRoutes(torch.tensor(routes)))
        for b, g in pairs:
            if dropped[b] and routes[b][g] and not self.routes[b][g]:
                other = next(h for h in self.held[b] if len(h) < self.lengths[b])
                self.held[b][g] = list(other)
        self.routes = routes

    @rule()
    def evict(self):
        self.store.evict()
        for b, n in enumerate(self.lengths):
            for g in range(HEADS):
                if self.is_evicting(b, g) and n:
                    keep = set(held_positions(n))
                    self.held[b][g] = [p for p in self.held[b][g] if p in keep]

    @precondition(lambda self: self.store.groups is not None)
    @rule(data=st.data())
    def crop(self, data):
        counts = [data.draw(st.integers(0, n)) for n in self.lengths]

        def is_too_deep(b):
            if not counts[b]:
                return False
            needed = set(held_positions(self.lengths[b] - counts[b] + 1)) - {self.lengths[b] - counts[b]}
            return any(self.is_evicting(b, g) and not needed <= set(self.held[b][g]) for g in range(HEADS))

        if any(is_too_deep(b) for b in range(len(counts))):
            with pytest.raises(CacheDepthError, match="decode='full'"):
                self.store.crop(counts)
            return
        self.store.crop(counts)
        for b, count in enumerate(counts):
            self.lengths[b] -= count
            for g in range(HEADS):
                self.held[b][g] = [p for p in self.held[b][g] if p < self.lengths[b]]

    @precondition(lambda self: self.store.groups is not None)
    @rule(data=st.data())
    def select(self, data):
        indices = data.draw(st.lists(st.integers(0, len(self.lengths) - 1), min_size=1, max_size=4))
        self.store.select(indices)
        for name in ("lengths", "values", "held", "routes"):
            setattr(self, name, [copy.deepcopy(getattr(self, name)[i]) for i in indices])

    @rule()
    def deep_copy(self):
        """The original must not notice what happens to the copy, and the other way round."""
        original, self.store = self.store, copy.deepcopy(self.store)
        for group in original.groups or ():
            group.keys.fill_(math.nan)

    @invariant()
    def holds_what_the_lists_hold(self):
        if self.store.groups is None:
            return
        assert self.store.lengths == self.lengths
        assert self.store.routes.host().tolist() == self.routes
        seen = set()
        bytes_by_sequence = [0] * len(self.lengths)
        for group in self.store.groups:
            assert group.rows == sorted(group.rows) == group.index.tolist()
            for i, (row, length) in enumerate(zip(group.rows, self.store.stored_lengths(group), strict=True)):
                b, g = divmod(row, HEADS)
                seen.add(row)
                assert group.is_evicting == self.is_evicting(b, g)
                wanted = [self.values[b][g][p] for p in self.held[b][g]]
                assert group.keys[i, :length, 0].tolist() == wanted
                assert group.values[i, :length, 1].tolist() == [-w for w in wanted]
                # A masked key counts for nothing only while it is finite.
                assert bool(torch.isfinite(group.keys[i]).all()) and bool(torch.isfinite(group.values[i]).all())
                bytes_by_sequence[b] += sum(x[i].numel() * x.element_size() for x in (group.keys, group.values))
        assert seen == set(range(len(self.lengths) * HEADS))
        assert self.store.count_allocated_bytes() == bytes_by_sequence

    @invariant()
    def dense_view_is_everything_or_nothing(self):
        view = self.store.dense_view()
        is_dense = not any(self.is_evicting(b, g) for b in range(len(self.lengths)) for g in range(HEADS))
        if self.store.groups is None or not is_dense or len(set(self.lengths)) != 1:
            assert view is None
            return
        wanted = [[[self.values[b][g][p] for p in range(n)] for g in range(HEADS)] for b, n in enumerate(self.lengths)]
        assert view[0][..., 0].tolist() == wanted


class KeepAllProgram(CacheProgram):
    """decode="full": sparse rows keep everything."""

    keeps_all = True


TestCacheProgram = CacheProgram.TestCase
TestKeepAllProgram = KeepAllProgram.TestCase
TestCacheProgram.settings = settings(max_examples=200, stateful_step_count=25, deadline=None, derandomize=True)
TestKeepAllProgram.settings = settings(max_examples=30, stateful_step_count=20, deadline=None, derandomize=True)


def filled(routes, num_tokens, *, keeps_all=False, dtype=torch.float32, config=CONFIG):
    store = ElasticCache(build_pattern(config), keeps_all=keeps_all)
    keys = torch.randn(len(routes), HEADS, num_tokens, WIDTH).to(dtype)
    store.append(keys, keys)
    store.assign(HeadRoutes(torch.tensor(routes)))
    store.evict()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 11, 12, 13, 16, 17, 100])
def test_bytes_after_prefill_to_the_byte(dtype, num_tokens):
    """2 * D * itemsize * (n of a full head, tokens in the sink and local blocks of a sparse one); nothing more."""
    store = filled([[True, False], [True, True]], num_tokens, dtype=dtype)
    per_token = 2 * WIDTH * dtype.itemsize
    held = len(held_positions(num_tokens))
    assert store.count_allocated_bytes() == [per_token * (num_tokens + held), per_token * 2 * held]


def test_memory_really_shrinks_and_growth_is_bounded():
    store = filled([[True, True]], 1000)
    for _ in range(300):
        store.append(torch.randn(1, HEADS, 1, WIDTH), torch.randn(1, HEADS, 1, WIDTH))
        store.evict()
        stored = store.stored_lengths(store.groups[1])[0]
        assert stored <= 12 and store.groups[1].keys.shape[1] <= 12 + 2
        assert store.groups[1].keys.untyped_storage().nbytes() <= 4 * WIDTH * HEADS * 14


def test_a_head_that_turns_sparse_after_others_dropped_tokens_loses_the_same_tokens():
    """reroute_on_append: a later prompt may make a full head sparse; it must drop what its sequence dropped."""
    store = filled([[True, False]], 60)
    keys = store.groups[0].keys[0, :60].clone()
    store.assign(HeadRoutes(torch.tensor([[True, True]])))
    store.evict()
    kept = held_positions(60)
    group = store.groups[1]
    assert store.stored_lengths(group) == [len(kept)] * 2
    assert torch.equal(group.keys[1, : len(kept)], keys[kept])


def test_cropping_into_the_sink_is_always_possible():
    store = filled([[True, False], [True, True]], 60)
    keys = store.groups[1].keys[:, :4].clone()
    store.crop([60, 57])
    assert store.lengths == [0, 3] and store.stored_lengths(store.groups[1]) == [0, 3, 3]
    new = torch.randn(2, HEADS, 2, WIDTH)
    store.append(new, new)
    assert torch.equal(store.groups[1].keys[1, :5], torch.cat([keys[1, :3], new[1, 0]]))
    with pytest.raises(CacheDepthError, match="Cropping 50 of 60"):
        filled([[True, False]], 60).crop([50])


def test_empty_cache_ignores_everything():
    store = ElasticCache(build_pattern(CONFIG))
    store.evict()
    store.crop([])
    store.select([0])
    assert store.dense_view() is None and store.count_allocated_bytes() == []
