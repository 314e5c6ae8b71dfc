"""What the attention backends of vLLM share: stock metadata and the stock kernel, called with virtual sequences.

The classes stand before a stock class of the backend and say the few things in which backends differ.
"""

import copy
import functools
from typing import Any

from torch import Tensor

from .layout import KeyReader, make_reader
from .probe import Probe
from .step import LayerRouting, RoutedStep, StatesOf, find_first_routing, find_routing, open_step


class RoutedBuilder:
    """Stock metadata with the plan of the step beside it.

    Attributes:
        head_counts: what the stock builder calls its numbers of query heads and of KV heads.
    """

    head_counts = ("num_heads", "num_kv_heads")

    @functools.cached_property
    def routing(self) -> LayerRouting | None:
        """That of any layer it builds for; routers are there before metadata are."""
        return find_first_routing(self)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """As the stock builder; requests with routes get a `RoutedStep`."""
        stock = super().build  # type: ignore[misc]
        metadata = stock(common_prefix_len, common_attn_metadata, fast_build)
        step = self.open_step(metadata, common_attn_metadata)
        if step is not None:
            metadata.elastic = step
        return metadata

    def open_step(self, metadata: Any, common: Any) -> Any:
        """What the layers of the forward do beside the stock metadata; None for nothing."""
        return open_step(self, common)

    def build_virtual(self, common: Any) -> Any:
        """Stock metadata of virtual sequences, whose heads are those of one KV head."""
        single = copy.copy(self)
        query_heads, kv_heads = self.head_counts
        setattr(single, query_heads, getattr(self, query_heads) // getattr(self, kv_heads))
        setattr(single, kv_heads, 1)
        return super(RoutedBuilder, single).build(0, common)  # type: ignore[misc]


class RoutedImpl:
    """Stock attention, over virtual sequences where a step has sparse queries."""

    _reader: KeyReader | None = None
    _single: Any = None

    def forward(
        self: Any,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """As the stock implementation."""
        routing = find_routing(layer)
        if isinstance(attn_metadata, Probe):
            output[:] = attn_metadata.attend(routing, self.scale, query, key, value).view_as(output)
            return output
        if routing is not None and routing.queries is not None and attn_metadata is not None:
            routing.queries.write(query, attn_metadata.slot_mapping)
        step: RoutedStep | None = getattr(attn_metadata, "elastic", None)
        if step is not None and routing is not None:
            step.decide(routing, self.read_states(routing, layer, kv_cache))
            if step.is_virtual:
                rows, pages, metadata = step.virtualize(routing, query, kv_cache)
                result = step.make_room(rows, output)
                # Without keys and values: they are cached already, and vLLM 0.26 would write them once more.
                stock = super(RoutedImpl, self._narrow()).forward  # type: ignore[misc]
                stock(layer, rows, None, None, pages, metadata, result, *args, **kwargs)
                return step.put_back(result, output)
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]

    def read_states(self, routing: LayerRouting, layer: Any, cache: Tensor) -> StatesOf:
        """How to read back what the router of this layer wants."""
        if routing.queries is not None:
            return routing.queries.read
        if self._reader is None:
            self._reader = make_reader(self, layer, cache)
        return functools.partial(self._reader.read, cache)

    def _narrow(self: Any) -> Any:
        """This implementation for one KV head."""
        if self._single is None:
            single = copy.copy(self)
            single.num_heads, single.num_kv_heads = self.num_heads // self.num_kv_heads, 1
            self._single = single
        return self._single
