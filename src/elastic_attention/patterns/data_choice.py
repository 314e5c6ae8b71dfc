"""What patterns share that choose from the data what is read: bounds, and which rows never take part."""

import torch
from torch import Tensor

# Behind every position: responses have no last row.
_OPEN_END = 2**31 - 1


class DataChoice:
    """A pattern whose reads depend on the data, so that every key up to the query may be read and none is dropped."""

    num_pinned_tokens = 0

    def is_visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bool mask of the keys that may be chosen: all up to the query."""
        return key_positions <= query_positions

    def find_dense_rows(self, prompt_lengths: Tensor) -> Tensor:
        """Positions [start, stop) of the queries that read every key: all behind the prompt.

        Args:
            prompt_lengths: (B,) int, real tokens of each prompt.

        Returns:
            (B, 2) int32 on the same device.
        """
        return torch.stack([prompt_lengths, torch.full_like(prompt_lengths, _OPEN_END)], dim=1).to(torch.int32)

    def count_evicted(self, num_tokens: int) -> int:
        """No token is ever dropped: which ones the next query wants is not known."""
        return 0

    def count_held(self, num_tokens: int) -> int:
        """Tokens that a sequence of `num_tokens` must keep: all."""
        return num_tokens
