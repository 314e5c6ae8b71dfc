"""Samples that are longer than a pack: an error, left out, or their context cut in the middle; always counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import DataError

POLICIES = ("error", "skip", "truncate_middle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """What came of a policy.

    Attributes:
        kept: (k,) int64, numbers of the samples that are used, ascending.
        removed: (samples,) int64, tokens to cut from the middle of each context.
        over_long: category -> number of samples longer than a pack.
        policy: what was done to them.
    """

    kept: np.ndarray
    removed: np.ndarray
    over_long: dict[str, int]
    policy: str

    def __str__(self) -> str:
        """One line for logs."""
        total, verb = sum(self.over_long.values()), "left out" if self.policy == "skip" else "cut in the middle"
        detail = ", ".join(f"{count} {category}" for category, count in sorted(self.over_long.items()))
        return f"{total} of {len(self.removed)} samples are longer than a pack and {verb} ({detail})."


def fit_samples(
    lengths: np.ndarray,
    context_lengths: np.ndarray,
    categories: Sequence[str],
    *,
    capacity: int,
    policy: str,
    where: Callable[[int], str],
) -> Fitting:
    """Apply a policy to the samples that are longer than `capacity` tokens.

    Args:
        lengths, context_lengths: (samples,) int64, tokens of each sample and of its context.
        categories: of each sample.
        capacity: tokens of a pack.
        policy: "error", "skip" or "truncate_middle".
        where: names a sample for messages.

    Raises:
        DataError: there is one and the policy is "error", a context is too short to cut, or no sample is left.
    """
    excess = np.maximum(lengths - capacity, 0)
    long = np.flatnonzero(excess)
    stuck = long if policy == "error" else long[excess[long] > context_lengths[long]]
    if policy != "skip" and len(stuck):
        first = int(stuck[0])
        cut = "; its context alone is too short to cut" if policy == "truncate_middle" else ""
        others = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
        remedy = [name for name in ("truncate_middle", "skip") if policy == "error" or name == "skip"]
        raise DataError(
            f"{where(first)}{others}: {lengths[first]} tokens do not fit a pack of {capacity}{cut}. Raise "
            f"data.packs.tokens or set data.packs.over_long to one of {remedy}."
        )
    kept = np.flatnonzero(excess == 0) if policy == "skip" else np.arange(len(lengths))
    if not len(kept):
        raise DataError(f"no sample fits a pack of {capacity} tokens; raise data.packs.tokens.")
    counts = Counter(categories[i] for i in long)
    return Fitting(kept=kept, removed=excess, over_long=dict(counts), policy=policy)


def keep_pieces(length: int, context: tuple[int, int], removed: int) -> list[tuple[int, int]]:
    """The [first, last) pieces of a sample that remain when `removed` tokens leave the middle of its context."""
    if not removed:
        return [(0, length)]
    first, last = context
    half = (last - first - removed + 1) // 2
    return [(0, first + half), (first + half + removed, length)]
