"""Routed attention on vLLM's CPU backend: the stock builder and the stock kernel, called with virtual sequences."""

import copy
import functools
from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from .layout import KeyReader
from .probe import Probe
from .step import RoutedStep, find_routing, open_step


class ElasticCPUBuilder(CPUAttentionMetadataBuilder):
    """Stock metadata with the plan of the step beside it."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """As the stock builder; requests with routes get a `RoutedStep`."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        step = open_step(self, common_attn_metadata)
        if step is not None:
            metadata.elastic = step
        return metadata

    def build_virtual(self, common: Any) -> Any:
        """Stock metadata of virtual sequences: one KV head, and the query heads that share it."""
        single = copy.copy(self)
        single.num_heads, single.num_kv_heads = self.num_heads // self.num_kv_heads, 1
        return CPUAttentionMetadataBuilder.build(single, 0, common)


class ElasticCPUImpl(CPUAttentionBackendImpl):
    """Stock attention, over virtual sequences where a step has sparse queries."""

    _reader: KeyReader | None = None

    def forward(
        self,
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
        stock = super().forward
        step: RoutedStep | None = getattr(attn_metadata, "elastic", None)
        if step is not None and routing is not None:
            step.decide(routing, functools.partial(self._find_reader(layer, kv_cache).read, kv_cache))
            if step.plan.pieces is not None:
                rows, pages, metadata = step.virtualize(routing, query, kv_cache)
                result = rows.new_empty(rows.shape)
                # Without keys and values: they are cached already, and vLLM 0.26 would write them once more.
                stock(layer, rows, None, None, pages, metadata, result, *args, **kwargs)
                return step.put_back(result, output)
        return stock(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)

    def _find_reader(self, layer: Any, cache: Tensor) -> KeyReader:
        if self._reader is None:
            self._reader = KeyReader(self, layer, cache)
        return self._reader


class ElasticCPUBackend(CPUAttentionBackend):
    """The CPU backend with routed heads; without routes it is the stock one."""

    @staticmethod
    def get_impl_cls() -> type[ElasticCPUImpl]:
        """The implementation."""
        return ElasticCPUImpl

    @staticmethod
    def get_builder_cls() -> type[ElasticCPUBuilder]:
        """The builder of its metadata."""
        return ElasticCPUBuilder
