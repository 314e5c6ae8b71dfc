"""Triangle attention (TA): streaming, except that the last queries of the prompt read everything."""

import torch
from torch import Tensor

from ..config import TriangleConfig
from .streaming import StreamingPattern


class TrianglePattern(StreamingPattern):
    """The streaming rule, the rows of the prompt that are free of it, and the pairs they add.

    Responses and decoded tokens are streaming, so a finished prompt keeps what streaming keeps.
    """

    name = "triangle"

    def __init__(self, config: TriangleConfig) -> None:
        super().__init__(config.streaming)
        self.num_last_queries = config.num_last_queries

    def find_dense_rows(self, prompt_lengths: Tensor) -> Tensor:
        """Positions [start, stop) of the queries that read every key: the last ones of the prompt.

        Args:
            prompt_lengths: (B,) int, real tokens of each prompt.

        Returns:
            (B, 2) int32 on the same device.
        """
        start = (prompt_lengths - self.num_last_queries).clamp(min=0)
        return torch.stack([start, prompt_lengths], dim=1).to(torch.int32)

    def is_visible(
        self, query_positions: Tensor, key_positions: Tensor, prompt_length: int | Tensor | None = None
    ) -> Tensor:
        """Bool mask over the broadcast of two int position tensors; without a prompt length all rows are responses."""
        is_streamed = super().is_visible(query_positions, key_positions)
        if prompt_length is None:
            return is_streamed
        is_last = (query_positions < prompt_length) & (query_positions >= prompt_length - self.num_last_queries)
        return is_streamed | (is_last & (key_positions <= query_positions))

    def count_pairs(self, start: int, stop: int, prompt_length: int | None = None) -> int:
        """Query-key pairs read by the queries at positions [start, stop); the prompt's last ones read all they can."""
        pairs = super().count_pairs(start, stop)
        if prompt_length is None:
            return pairs
        first, last = max(start, prompt_length - self.num_last_queries), min(stop, prompt_length)
        if first >= last:
            return pairs
        dense = (last * (last + 1) - first * (first + 1)) // 2
        return pairs + dense - super().count_pairs(first, last)
