"""The order of an epoch: shuffled by a seed, with the categories spread evenly over it."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffle_epoch(categories: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the samples.

    Each category is shuffled by itself, then the categories are dealt out in proportion, so that any stretch of the
    epoch holds about their shares. Own arithmetic, no library's generator: the same on any machine and in any version.

    Args:
        categories: (samples,) int64, number of each sample's category.

    Returns:
        (samples,) int64 numbers of samples.
    """
    keys = _hash_numbers(len(categories), seed, epoch)
    # By category, then by key; the number of the sample decides between equal keys.
    by_category = np.lexsort((np.arange(len(keys)), keys, categories))
    _, first, inverse, counts = np.unique(
        categories[by_category], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(keys)) - first[inverse]
    depth = (2 * rank + 1) / (2 * counts[inverse])  # of the sample in the epoch, in (0, 1)
    return by_category[np.lexsort((keys[by_category], depth))]


def _hash_numbers(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) uint64, splitmix64 of (seed, epoch, number)."""
    start = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(epoch % 2**64))
    return _mix(start + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
