"""Sparse patterns: one file each, one line in the registry."""

from ..config import SparsePattern, StreamingConfig, TriangleConfig, XAttentionConfig
from .infllm import InfllmConfig, InfllmPattern
from .moba import MobaConfig, MobaPattern
from .streaming import StreamingPattern
from .token_choice import TokenChoice
from .triangle import TrianglePattern
from .xattention import XAttentionPattern, count_listed_pairs

AnyPattern = StreamingPattern | XAttentionPattern | TrianglePattern | TokenChoice
ComparedPattern = MobaConfig | InfllmConfig
"""Patterns that comparisons alone use: no adapter file holds them."""


def build_pattern(config: SparsePattern | ComparedPattern) -> AnyPattern:
    """The pattern that a configuration describes.

    Raises:
        TypeError: the configuration belongs to no known pattern.
    """
    if isinstance(config, StreamingConfig):
        return StreamingPattern(config)
    if isinstance(config, XAttentionConfig):
        return XAttentionPattern(config)
    if isinstance(config, TriangleConfig):
        return TrianglePattern(config)
    if isinstance(config, MobaConfig):
        return MobaPattern(config)
    if isinstance(config, InfllmConfig):
        return InfllmPattern(config)
    names = "StreamingConfig, TriangleConfig, XAttentionConfig, MobaConfig, InfllmConfig"
    raise TypeError(f"pattern={config!r} is no pattern configuration; use one of {names}.")


__all__ = [
    "AnyPattern",
    "ComparedPattern",
    "InfllmConfig",
    "InfllmPattern",
    "MobaConfig",
    "MobaPattern",
    "StreamingPattern",
    "TokenChoice",
    "TrianglePattern",
    "XAttentionPattern",
    "build_pattern",
    "count_listed_pairs",
]
