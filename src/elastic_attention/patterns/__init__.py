"""Sparse patterns: one file each, one line in the registry."""

from ..config import StreamingConfig
from .streaming import StreamingPattern

_PATTERNS = {StreamingConfig: StreamingPattern}


def build_pattern(config: StreamingConfig) -> StreamingPattern:
    """The pattern that a configuration describes.

    Raises:
        TypeError: the configuration belongs to no known pattern.
    """
    try:
        return _PATTERNS[type(config)](config)
    except KeyError:
        names = ", ".join(sorted(c.__name__ for c in _PATTERNS))
        raise TypeError(f"pattern={config!r} is no pattern configuration; use one of {names}.") from None


__all__ = ["StreamingPattern", "build_pattern"]
