"""Taking tokens back from a cache that has dropped some: where its sparse rows still hold what comes next."""

from collections.abc import Iterable, Sequence

from ..errors import CacheDepthError
from ..types import Pattern


def count_evicted_after_crop(
    pattern: Pattern,
    lengths: Sequence[int],
    evicted: Sequence[int],
    counts: Sequence[int],
    *,
    evicting: Iterable[int],
) -> list[int]:
    """Tokens of each sequence that stay dropped when its last `counts[b]` are forgotten; nothing is changed.

    Args:
        pattern: of the sparse rows.
        lengths, evicted: tokens of each sequence, and how many of them its sparse rows have dropped.
        counts: tokens to forget of each sequence.
        evicting: the sequences that have sparse rows.

    Raises:
        CacheDepthError: sparse rows no longer hold the window of an earlier position.
    """
    after = list(evicted)
    for b in evicting:
        n = lengths[b] - counts[b]
        if n <= pattern.num_pinned_tokens:
            after[b] = 0  # everything that was dropped lies behind the cut
            continue
        # The next query stands at position n, so it needs what a sequence of n + 1 tokens holds.
        allowed = pattern.count_evicted(n + 1)
        if counts[b] and evicted[b] > allowed:
            raise CacheDepthError(
                f"Cropping {counts[b]} of {lengths[b]} tokens goes behind the window: sparse heads dropped "
                f"{evicted[b]} tokens, at {n} tokens no more than {allowed} may be gone. Crop fewer tokens "
                "or attach with decode='full'."
            )
    return after
