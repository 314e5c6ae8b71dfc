"""New layers of a cache: which store holds their keys and values."""

import functools

from ..cache import ElasticCache
from ..config import StreamingConfig
from ..paging import LayerGroup, PagedCache
from ..patterns import StreamingPattern
from ..types import Pattern
from .cache_layer import ElasticLayer, Store


def make_layer(
    group: LayerGroup, pattern: Pattern, *, keeps_all: bool, is_paged: bool, num_pooled: int
) -> ElasticLayer:
    """An empty layer that makes its stores itself, the first one and those after a reset.

    Args:
        group: what the layers of a cache share.
        pattern: of sparse heads; says what they drop.
        keeps_all: sparse heads drop nothing.
        is_paged: keys and values lie in pages.
        num_pooled: tokens at each end of a prompt that are pooled for a router.
    """
    # Under patterns that do not stream nothing is dropped, so any rule for dropping will do.
    rule = pattern if isinstance(pattern, StreamingPattern) else StreamingPattern(StreamingConfig())
    # No inner function: a cache of a long prompt may be saved, and pickle stores names alone.
    make_store = functools.partial(_make_store, rule, keeps_all, is_paged)
    return ElasticLayer(make_store, group, num_pooled=num_pooled)


def _make_store(rule: StreamingPattern, keeps_all: bool, is_paged: bool, group: LayerGroup) -> Store:
    return PagedCache(rule, keeps_all=keeps_all, group=group) if is_paged else ElasticCache(rule, keeps_all=keeps_all)
