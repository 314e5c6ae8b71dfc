"""Streaming attention (SSA): a sink and a local window, both in whole blocks."""

from torch import Tensor

from ..config import StreamingConfig


class StreamingPattern:
    """The block rule of `StreamingConfig` as a mask, as pair counts and as tokens to keep."""

    name = "streaming"

    def __init__(self, config: StreamingConfig) -> None:
        self.config = config
        self.num_pinned_tokens = config.num_sink_tokens
        self.dense_tokens = config.num_sink_tokens + config.local_window

    def is_visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bool mask over the broadcast of two int position tensors."""
        block = self.config.block_size
        q, k = query_positions, key_positions
        is_sink = k < self.config.num_sink_tokens
        is_local = k // block > q // block - self.config.local_window // block
        return (k <= q) & (is_sink | is_local)

    def count_evicted(self, num_tokens: int) -> int:
        """Tokens that lie behind the window once `num_tokens` are cached: [sink, sink + result) is gone.

        Always a multiple of the block. Dropping them and closing the gap leaves a shorter sequence under the
        very same rule, which is why a compacted cache needs no positions.
        """
        c = self.config
        local_start = (max(num_tokens - 1, 0) // c.block_size + 1) * c.block_size - c.local_window
        return max(0, local_start - c.num_sink_tokens)

    def count_held(self, num_tokens: int) -> int:
        """Tokens in the sink and the local blocks of a sequence of `num_tokens`."""
        return num_tokens - self.count_evicted(num_tokens)

    def count_pairs(self, start: int, stop: int) -> int:
        """Query-key pairs read by the queries at positions [start, stop): sum of count_held(p + 1)."""
        return self._count_pairs_before(stop) - self._count_pairs_before(start)

    def _count_pairs_before(self, stop: int) -> int:
        c = self.config
        # Up to here nothing is evicted; from here on every block of queries loses one block more.
        dense = min(stop, c.num_sink_tokens + c.local_window)
        blocks, rest = divmod(stop - dense, c.block_size)
        evicted = c.block_size * (c.block_size * blocks * (blocks + 1) // 2 + rest * (blocks + 1))
        return stop * (stop + 1) // 2 - evicted
