"""XAttention (XA): the key blocks that hold most of a query block's score mass, chosen from the data."""

import torch
from torch import Tensor

from ..config import XAttentionConfig
from ..sparsity import count_causal_pairs

# Behind every position: responses have no last row.
_OPEN_END = 2**31 - 1


class XAttentionPattern:
    """What is known of XAttention before it has seen the data: bounds, and which rows never take part."""

    name = "xattention"

    def __init__(self, config: XAttentionConfig) -> None:
        self.config = config
        self.num_pinned_tokens = 0
        self.dense_tokens = 2 * config.block_size  # block 0 and the diagonal

    def find_dense_rows(self, prompt_lengths: Tensor) -> Tensor:
        """Positions [start, stop) of the queries that read every key: all behind the prompt.

        Args:
            prompt_lengths: (B,) int, real tokens of each prompt.

        Returns:
            (B, 2) int32 on the same device.
        """
        return torch.stack([prompt_lengths, torch.full_like(prompt_lengths, _OPEN_END)], dim=1).to(torch.int32)

    def is_visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bool mask of the keys that may be chosen: all up to the query. `BlockLists` say which ones are."""
        return key_positions <= query_positions

    def count_pairs(self, start: int, stop: int) -> int:
        """An upper bound of the pairs read by the queries at [start, stop); `count_listed_pairs` counts them."""
        return count_causal_pairs(start, stop)

    def count_evicted(self, num_tokens: int) -> int:
        """No token is ever dropped: which ones the next query wants is not known."""
        return 0

    def count_held(self, num_tokens: int) -> int:
        """Tokens that a sequence of `num_tokens` must keep: all."""
        return num_tokens


def count_listed_pairs(counts: Tensor, block_size: int, first: int, start: int, stop: int) -> Tensor:
    """Query-key pairs that the queries at positions [start, stop) of one sequence read by their block lists.

    Asks the device for nothing by itself; reading the result does.

    Args:
        counts: (H, M) int, key blocks that every query block lists, the diagonal among them.
        block_size: tokens of a block.
        first: number of the query block in row 0.
        start, stop: positions of queries that follow their lists; rows behind M blocks must not be asked for.

    Returns:
        (H,) int64.
    """
    edges = (first + torch.arange(counts.shape[1], device=counts.device)) * block_size
    low, high = edges.clamp(min=start), (edges + block_size).clamp(max=stop)
    num_queries = (high - low).clamp(min=0)
    # A query reads whole blocks before its own, and of its own the keys up to itself.
    own = (high - edges) * (high - edges + 1) // 2 - (low - edges) * (low - edges + 1) // 2
    before = (counts.long() - 1).clamp(min=0) * block_size * num_queries
    return (before + own.where(num_queries > 0, 0)).sum(1)
