"""Routed attention on vLLM's FlashAttention backend.

Steps of one new token a request run as one CUDA graph, over tables that lie in buffers. In other steps attention runs
between the pieces of CUDA graphs.
"""

import copy
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from . import layout
from .attention import RoutedBuilder, RoutedImpl
from .decode_cuda import MOST_BYTES, DecodeBuffers, DecodeStep, count_bytes, count_requests
from .layout import list_head_major
from .step import Decision, find_routing, open_step

MIXED_SPLITS = 8
MOST_SPLIT_SEQUENCES = 992  # FlashAttention 3 splits each sequence of larger batches alike, needed or not


class ElasticFlashBuilder(RoutedBuilder, FlashAttentionMetadataBuilder):
    """The stock builder, with routed heads."""

    head_counts = ("num_heads_q", "num_heads_kv")
    _buffers: DecodeBuffers | None = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Graphs of whole steps of one new token a request, where their tables are not too large."""
        is_small = count_bytes(vllm_config, kv_cache_spec.block_size) <= MOST_BYTES
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE if is_small else AttentionCGSupport.NEVER

    def open_step(self, metadata: Any, common: Any) -> Any:
        """A step of single tokens reads buffers, as it may be the replay of a graph."""
        most = count_requests(self.vllm_config)
        if self.routing is None:
            return None
        if not self.use_full_cuda_graph or common.max_query_len > 1 or common.num_reqs > most:
            return open_step(self, common)
        books = self.routing.books
        if self._buffers is None:
            self._buffers = DecodeBuffers(books, most, common.block_table_tensor.shape[1], self.block_size)
        plan = books.plan_step(layout.list_rows(self.routing.runner, common)) if books.is_open else None
        if plan is not None and plan.deciding:
            decision = Decision(books, plan, common.block_table_tensor)
            if not plan.is_settled:  # all keys that such a request decides from came out of the prefix cache
                self._decide_all(decision)
            books.do_late(lambda: self._decide_all(decision))
        self._buffers.fill(common, plan)
        return DecodeStep(metadata, self._buffers, common.num_reqs)

    @torch.inference_mode()
    def _decide_all(self, decision: Decision) -> None:
        for layer in get_layers_from_vllm_config(self.vllm_config, Attention, self.layer_names).values():
            routing = find_routing(layer)
            if routing is not None:
                decision.decide(routing, layer.impl.read_states(routing, layer, layer.kv_cache))

    def build_virtual(self, common: Any) -> Any:
        """As ever, without a schedule made ahead, which would be one more kernel in every layer."""
        single = copy.copy(self)
        single.aot_schedule = single.use_full_cuda_graph = False
        metadata = super(ElasticFlashBuilder, single).build_virtual(common)
        if common.max_query_len > 1:
            metadata.max_num_splits = _count_splits(common)
        return metadata


def _count_splits(common: Any) -> int:
    """Parts of the keys of a sequence that may run side by side; each costs a copy of all results.

    Left to itself, FlashAttention takes the many short sequences of a prompt for a few and splits their keys. Only
    sequences of one new token are too few for the device.
    """
    lengths = common.query_start_loc_cpu.diff()
    return MIXED_SPLITS if len(lengths) <= MOST_SPLIT_SEQUENCES and bool((lengths == 1).any()) else 1


class ElasticFlashImpl(RoutedImpl, FlashAttentionImpl):
    """The stock implementation, with routed heads."""


class ElasticFlashBackend(FlashAttentionBackend):
    """FlashAttention with routed heads; without routes it is the stock one."""

    @staticmethod
    def get_name() -> str:
        """The name it is registered by."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[ElasticFlashImpl]:
        """The implementation."""
        return ElasticFlashImpl

    @staticmethod
    def get_builder_cls() -> type[ElasticFlashBuilder]:
        """The builder of its metadata."""
        return ElasticFlashBuilder

    @classmethod
    def get_required_kv_cache_layout(cls) -> str:
        """Head-major blocks (vLLM 0.26): the tokens of a head stand together, so that a head is a page."""
        return "HND"

    @classmethod
    def supported_kv_cache_layouts(cls) -> Any:
        """Head-major blocks (later releases)."""
        return list_head_major()
