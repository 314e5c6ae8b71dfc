"""Sparse patterns: one file each, one line in the registry."""

from ..config import SparsePattern, StreamingConfig, TriangleConfig, XAttentionConfig
from .streaming import StreamingPattern
from .triangle import TrianglePattern
from .xattention import XAttentionPattern, count_listed_pairs

AnyPattern = StreamingPattern | XAttentionPattern | TrianglePattern


def build_pattern(config: SparsePattern) -> AnyPattern:
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
    names = "StreamingConfig, TriangleConfig, XAttentionConfig"
    raise TypeError(f"pattern={config!r} is no pattern configuration; use one of {names}.")


__all__ = [
    "AnyPattern",
    "StreamingPattern",
    "TrianglePattern",
    "XAttentionPattern",
    "build_pattern",
    "count_listed_pairs",
]
