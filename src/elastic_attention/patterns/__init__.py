"""Sparse patterns: one file each, one line in the registry."""

from typing import Any, overload

from ..config import SparsePattern, StreamingConfig, TriangleConfig, XAttentionConfig
from .streaming import StreamingPattern
from .triangle import TrianglePattern
from .xattention import XAttentionPattern, count_listed_pairs

_PATTERNS: dict[type, Any] = {
    StreamingConfig: StreamingPattern,
    XAttentionConfig: XAttentionPattern,
    TriangleConfig: TrianglePattern,
}


@overload
def build_pattern(config: TriangleConfig) -> TrianglePattern: ...
@overload
def build_pattern(config: StreamingConfig) -> StreamingPattern: ...
@overload
def build_pattern(config: XAttentionConfig) -> XAttentionPattern: ...
@overload
def build_pattern(config: SparsePattern) -> StreamingPattern | XAttentionPattern: ...


def build_pattern(config: SparsePattern) -> StreamingPattern | XAttentionPattern:
    """The pattern that a configuration describes.

    Raises:
        TypeError: the configuration belongs to no known pattern.
    """
    try:
        pattern: StreamingPattern | XAttentionPattern = _PATTERNS[type(config)](config)
    except KeyError:
        names = ", ".join(sorted(c.__name__ for c in _PATTERNS))
        raise TypeError(f"pattern={config!r} is no pattern configuration; use one of {names}.") from None
    return pattern


__all__ = ["StreamingPattern", "TrianglePattern", "XAttentionPattern", "build_pattern", "count_listed_pairs"]
