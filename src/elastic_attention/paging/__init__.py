"""The cache of a GPU: pages of keys and values, found through tables in device memory."""

from .group import LayerGroup
from .store import PagedCache

__all__ = ["LayerGroup", "PagedCache"]
