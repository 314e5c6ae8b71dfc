"""Cutting causal and streaming attention into dense pieces without any mask.

The block rule makes this possible: all queries of a block see the same sink and the same whole local blocks, so a
block of queries is one dense attention over each of those plus one causal square on the diagonal.
"""

from dataclasses import dataclass

from ..config import StreamingConfig


@dataclass(frozen=True, slots=True)
class Part:
    """Keys [start + i * step, start + i * step + length) for the i-th query block of a piece."""

    start: int
    step: int
    length: int
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` query blocks of `length` queries each, back to back from query `start`, and the keys they read."""

    start: int
    count: int
    length: int
    parts: tuple[Part, ...]


# Queries of a piece of full attention. Only the square on its diagonal gives threads uneven work.
CAUSAL_LENGTH = 1024


def cut_causal(num_queries: int, num_keys: int) -> list[Piece]:
    """Pieces of full causal attention for the last `num_queries` of `num_keys` positions."""
    offset = num_keys - num_queries
    return [
        _dense_piece(position, min(CAUSAL_LENGTH, num_keys - position), offset)
        for position in range(offset, num_keys, CAUSAL_LENGTH)
    ]


def cut_streaming(num_queries: int, num_keys: int, config: StreamingConfig) -> list[Piece]:
    """Pieces of streaming attention for the last `num_queries` of `num_keys` positions."""
    block, offset = config.block_size, num_keys - num_queries
    pieces = []
    # As long as the window still touches the sink, streaming is plain causal attention.
    dense_end = min(num_keys, config.num_sink_tokens + config.local_window)
    if offset < dense_end:
        pieces.append(_dense_piece(offset, dense_end - offset, offset))
    position = max(offset, dense_end)
    while position < num_keys:
        in_block = position % block
        count = (num_keys - position) // block if in_block == 0 else 0
        length = block if count else min(block - in_block, num_keys - position)
        window_start = position - in_block + block - config.local_window
        parts = [Part(0, 0, config.num_sink_tokens)]
        if position > window_start:
            parts.append(Part(window_start, block, position - window_start))
        parts.append(Part(position, block, length, is_causal=True))
        pieces.append(Piece(position - offset, max(count, 1), length, tuple(parts)))
        position += max(count, 1) * length
    return pieces


def _dense_piece(position: int, length: int, offset: int) -> Piece:
    before = (Part(0, 0, position),) if position else ()
    return Piece(position - offset, 1, length, (*before, Part(position, 0, length, is_causal=True)))
