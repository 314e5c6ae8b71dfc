"""Routes that arrive late: a layer keeps its dense keys until then, and nobody waits longer than needed."""

import pytest
import torch

from elastic_attention.paging import LayerGroup, PagedCache
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from made_pages import HEADS, WIDE, WIDTH, fill


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
