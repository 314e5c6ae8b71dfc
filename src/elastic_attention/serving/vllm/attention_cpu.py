"""Routed attention on vLLM's CPU backend."""

from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from .attention import RoutedBuilder, RoutedImpl


class ElasticCPUBuilder(RoutedBuilder, CPUAttentionMetadataBuilder):
    """The stock builder, with routed heads."""


class ElasticCPUImpl(RoutedImpl, CPUAttentionBackendImpl):
    """The stock implementation, with routed heads."""


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
