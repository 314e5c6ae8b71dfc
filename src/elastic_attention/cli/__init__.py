"""The command `elastic-attn`. One file a command; arguments and output here, the work in the rows above."""

from .app import main

__all__ = ["main"]
