"""Each sample's share of a step's loss."""

from collections import Counter
from collections.abc import Sequence


def weigh_categories(categories: Sequence[str]) -> list[float]:
    """1 / (categories present * samples of the category) for each sample; the shares add up to 1.

    Args:
        categories: of ALL samples of the step, those of other forwards and other ranks included. Then neither
            accumulation nor sharding nor the order of the samples changes anything.
    """
    counts = Counter(categories)
    return [1.0 / (len(counts) * counts[category]) for category in categories]
