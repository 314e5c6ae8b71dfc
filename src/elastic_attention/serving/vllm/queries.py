"""Mean queries beside the keys of a paged cache, for routers that decide once a layer.

Such a router reads the mean query of all heads, and an engine keeps no queries. So the mean of each token is kept, in
the slot of its keys: chunks, shared prefixes and preempted requests need nothing of their own. Rotation is the same for
all heads and linear, so it is taken back from the mean.

Shape letters: T tokens, H query heads of this rank, D head dim, N blocks, P tokens of a block, R requests, m tokens.
"""

import torch
from torch import Tensor


class QueryPages:
    """The mean queries of one layer. Before `make_room` (profiling, warm-up) nothing is kept."""

    def __init__(self) -> None:
        self._states: Tensor | None = None
        self._page = 0

    def make_room(self, cache: Tensor) -> None:
        """Take memory beside a cache (N, G, P, 2 D), in its dtype."""
        blocks, _, self._page, width = cache.shape
        # One more: padding has vLLM's slot -1, which is the last one here and belongs to no token.
        self._states = torch.zeros(blocks * self._page + 1, width // 2, dtype=cache.dtype, device=cache.device)

    def write(self, query: Tensor, slots: Tensor) -> None:
        """Keep the mean over the heads of rotated queries (T, H, D) in their tokens' slots, (T,) or fewer."""
        if self._states is not None:
            self._states[slots] = query[: len(slots)].mean(1)

    def read(self, table: Tensor, positions: Tensor) -> Tensor:
        """Mean rotated queries (R, m, 1, D) of the tokens at `positions` (R, m) of requests with blocks (R, W)."""
        assert self._states is not None
        block = table.gather(1, positions // self._page).long()
        return self._states[block * self._page + positions % self._page].unsqueeze(2)


def average_ranks(pooled: Tensor) -> Tensor:
    """Mean of what the ranks hold, any shape, with the same bits on every rank.

    All ranks have the same number of query heads. What they hold is gathered and added in the order of ranks, so that
    no rank decides otherwise than another.
    """
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    if get_tensor_model_parallel_world_size() == 1:
        return pooled
    return tensor_model_parallel_all_gather(pooled[None].contiguous(), 0).mean(0)
