"""Paged caches that hold random keys, for tests of their pages."""

import torch

from elastic_attention import StreamingConfig
from elastic_attention.paging import PagedCache
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes

HEADS, WIDTH = 2, 16
CONFIG = StreamingConfig(num_sink_tokens=4, local_window=8, block_size=4)
WIDE = StreamingConfig(num_sink_tokens=64, local_window=192, block_size=64)


def fill(num_tokens, routes, *, config=WIDE, dtype=torch.float32, group=None, **options):
    store = PagedCache(build_pattern(config), group=group, **options)
    keys = torch.randn(len(routes), HEADS, num_tokens, WIDTH).to(dtype)
    store.append(keys, -keys)
    store.assign(HeadRoutes(torch.tensor(routes)))
    store.evict()
    return store
