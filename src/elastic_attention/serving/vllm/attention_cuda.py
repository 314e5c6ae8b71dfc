"""Routed attention on vLLM's FlashAttention backend.

Attention runs between the pieces of vLLM's CUDA graphs, not inside of a graph of the whole step.
"""

from typing import Any

from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from .attention import RoutedBuilder, RoutedImpl
from .layout import list_head_major


class ElasticFlashBuilder(RoutedBuilder, FlashAttentionMetadataBuilder):
    """The stock builder, with routed heads."""

    head_counts = ("num_heads_q", "num_heads_kv")


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
