"""Boundary pooling: the mean key of the first n and last n tokens of a sequence.

Shape letters: B batch, T tokens of this forward, G KV heads, D head dim, n pooled tokens at each end.
"""

import torch
from torch import Tensor


def select_boundary(real: Tensor, before: Tensor, num_pooled: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of T new tokens are among the first n or the last n of their sequence so far.

    Args:
        real: (B, T) bool; False marks padding, wherever it stands.
        before: (B,) int, real tokens of each sequence before these.
        num_pooled: n.

    Returns:
        index: (B, m) int64 into T, m <= 2n; rank: (B, m) int64, position of that token in its sequence;
        is_valid: (B, m) bool, False where a slot is unused.
    """
    n, (_, length) = num_pooled, real.shape
    rank = before[:, None] + real.cumsum(1) - 1
    total = before + real.sum(1)
    if length <= 2 * n:
        index = torch.arange(length, device=real.device).expand_as(real)
        is_real = real
    else:
        # Column of the i-th real token, then the first n and the last n of them.
        order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)
        count = total - before
        offset = torch.arange(n, device=real.device)[None]
        local = torch.cat([offset.expand(len(real), n), count[:, None] - n + offset], dim=1)
        is_second = torch.arange(2 * n, device=real.device) >= n
        is_real = (local >= torch.where(is_second, n, 0)) & (local < count[:, None])
        index = order.gather(1, local.clamp(0, length - 1))
    rank = rank.gather(1, index)
    is_valid = is_real & ((rank < n) | (rank >= (total - n)[:, None]))
    return index, rank, is_valid


def select_ends(start: Tensor, length: Tensor, num_pooled: int) -> tuple[Tensor, Tensor, Tensor]:
    """`select_boundary` for whole sequences that follow each other in one row of tokens.

    Args:
        start, length: (S,) int64, first token and tokens of each sequence.
        num_pooled: n.

    Returns:
        index: (S, 2n) int64 into the row; rank: (S, 2n) int64; is_valid: (S, 2n) bool, False where a slot is unused.
    """
    offset = torch.arange(num_pooled, device=start.device).expand(len(start), -1)
    last = length[:, None] - num_pooled + offset
    rank = torch.cat([offset, last], dim=1)
    # The last n of a short sequence begin among its first n, which stand there already.
    is_valid = torch.cat([offset < length[:, None], last >= num_pooled], dim=1)
    return start[:, None] + rank.where(is_valid, 0), rank.where(is_valid, 0), is_valid


def count_ends(rank: Tensor, is_valid: Tensor, length: Tensor, num_pooled: int, *, count_overlap_twice: bool) -> Tensor:
    """How often tokens count in the mean of their sequence, (S, m) float32; 0 for those between the two ends.

    Args:
        rank, is_valid: (S, m), as those of `select_ends`.
        length: (S,), tokens of each sequence.
        num_pooled: n.
    """
    is_first, is_last = rank < num_pooled, rank >= length[:, None] - num_pooled
    counts = (is_valid & (is_first | is_last)).float()
    return counts * (1 + (is_first & is_last).float()) if count_overlap_twice else counts


class BoundaryPool:
    """Keys before RoPE of the first n and last n tokens of each sequence, kept until its route is decided.

    Token of rank r lives in slot r if r < n, else in slot n + (r - n) % n, so the slots hold the union of the first n
    and the last n tokens, each once, however the sequence arrived: in one piece, in chunks, in turns. Each slot
    remembers the rank it holds; one that is no longer among them (after `crop`) does not count.
    """

    def __init__(self, num_pooled: int) -> None:
        self.num_pooled = num_pooled
        self._slots: Tensor | None = None  # (B, 2n + 1, G, D) float32; the last slot takes what is not pooled
        self._ranks: Tensor | None = None  # (B, 2n + 1) int64, -1 = empty
        self._total: Tensor | None = None  # (B,) int64, tokens that were offered so far

    def update(self, keys: Tensor, rank: Tensor, is_valid: Tensor) -> None:
        """Add tokens chosen by `select_boundary`.

        Args:
            keys: (B, m, G, D), any float dtype, before RoPE.
            rank, is_valid: (B, m).
        """
        n = self.num_pooled
        if self._slots is None or self._ranks is None or self._total is None:
            self._slots = keys.new_zeros((len(keys), 2 * n + 1, *keys.shape[2:]), dtype=torch.float32)
            self._ranks = rank.new_full((len(keys), 2 * n + 1), -1)
            self._total = rank.new_zeros(len(keys))
        slot = torch.where(rank < n, rank, n + (rank - n) % n)
        slot = torch.where(is_valid, slot, 2 * n)
        self._slots = self._slots.scatter(1, slot[..., None, None].expand(*rank.shape, *keys.shape[2:]), keys.float())
        self._ranks = self._ranks.scatter(1, slot, rank)
        self._total = self._total.maximum(torch.where(is_valid, rank, -1).amax(1) + 1)

    def crop(self, total: Tensor) -> None:
        """Forget the tokens from rank `total` (B,) on. What they displaced stays lost and does not count."""
        if self._ranks is not None and self._total is not None:
            self._total = self._total.minimum(total.to(self._total.device))
            self._ranks = torch.where(self._ranks < self._total[:, None], self._ranks, -1)

    def mean(self, *, count_overlap_twice: bool = False) -> Tensor:
        """Mean pooled key, (B, G, D) float32. An empty sequence gives zeros."""
        assert self._slots is not None and self._ranks is not None and self._total is not None
        ranks, twice = self._ranks[:, :-1], count_overlap_twice
        weight = count_ends(ranks, ranks >= 0, self._total, self.num_pooled, count_overlap_twice=twice)
        summed = (self._slots[:, :-1] * weight[..., None, None]).sum(1)
        return summed / weight.sum(1).clamp(min=1)[:, None, None]

    def select(self, indices: Tensor) -> None:
        """Keep these sequences, in this order; (B',) int64."""
        if self._slots is not None and self._ranks is not None and self._total is not None:
            indices = indices.to(self._slots.device)
            self._slots, self._ranks, self._total = self._slots[indices], self._ranks[indices], self._total[indices]
