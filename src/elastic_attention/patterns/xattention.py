"""XAttention (XA): the key blocks that hold most of a query block's score mass, chosen from the data."""

import torch
from torch import Tensor

from ..config import XAttentionConfig
from ..sparsity import count_causal_pairs
from .data_choice import DataChoice


class XAttentionPattern(DataChoice):
    """What is known of XAttention before it has seen the data; `BlockLists` say which keys are read."""

    name = "xattention"

    def __init__(self, config: XAttentionConfig) -> None:
        self.config = config
        self.dense_tokens = 2 * config.block_size  # block 0 and the diagonal

    def count_pairs(self, start: int, stop: int) -> int:
        """An upper bound of the pairs read by the queries at [start, stop); `count_listed_pairs` counts them."""
        return count_causal_pairs(start, stop)


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
