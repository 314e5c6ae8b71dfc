"""Elastic Attention: per input and per KV head, full or sparse attention on frozen language models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import blended_attention, decode_attention, hybrid_attention
    from .config import ElasticConfig, RouterConfig, StreamingConfig, TriangleConfig, XAttentionConfig
    from .errors import (
        AdapterError,
        AlreadyAttached,
        BackendUnavailable,
        CacheDepthError,
        CheckpointError,
        DataError,
        DownloadError,
        ElasticAttentionError,
        LostRank,
        RecipeError,
        RouterMismatch,
        TrainingDiverged,
        UnsupportedCache,
        UnsupportedModel,
    )
    from .models.attach import attach
    from .models.captured import SamplingConfig, generate_captured
    from .models.checkpoint import read_static_routes
    from .models.handle import Handle, find_handle
    from .models.loading import load_model
    from .sparsity import effective_sparsity_ratio, model_sparsity_ratio

__version__ = "0.1.0"

_HOMES = {
    "attach": "models.attach",
    "Handle": "models.handle",
    "find_handle": "models.handle",
    "ElasticConfig": "config",
    "RouterConfig": "config",
    "StreamingConfig": "config",
    "TriangleConfig": "config",
    "XAttentionConfig": "config",
    "SamplingConfig": "models.captured",
    "generate_captured": "models.captured",
    "hybrid_attention": "attention",
    "read_static_routes": "models.checkpoint",
    "blended_attention": "attention",
    "decode_attention": "attention",
    "model_sparsity_ratio": "sparsity",
    "effective_sparsity_ratio": "sparsity",
    "load_model": "models.loading",
}

__all__ = [
    "AdapterError",
    "AlreadyAttached",
    "BackendUnavailable",
    "CacheDepthError",
    "CheckpointError",
    "DataError",
    "DownloadError",
    "ElasticAttentionError",
    "ElasticConfig",
    "Handle",
    "LostRank",
    "RecipeError",
    "RouterConfig",
    "RouterMismatch",
    "SamplingConfig",
    "StreamingConfig",
    "TrainingDiverged",
    "TriangleConfig",
    "UnsupportedCache",
    "UnsupportedModel",
    "XAttentionConfig",
    "attach",
    "blended_attention",
    "decode_attention",
    "effective_sparsity_ratio",
    "find_handle",
    "generate_captured",
    "hybrid_attention",
    "load_model",
    "model_sparsity_ratio",
    "read_static_routes",
]
_HOMES |= {name: "errors" for name in __all__ if name not in _HOMES}


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that importing the package needs torch alone."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, also those that are not loaded yet: what an interactive shell completes."""
    return sorted({*globals(), *__all__})
