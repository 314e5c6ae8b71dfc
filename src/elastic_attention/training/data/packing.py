"""Which samples share a pack: a plan of integers, so that a place in the data is a number and not a state."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from .order import shuffle_epoch


def plan_packs(order: Iterable[int], lengths: np.ndarray, *, capacity: int, lookahead: int) -> Iterator[list[int]]:
    """Group samples into packs by first fit within a bounded look-ahead.

    A pack begins with the oldest waiting sample, so none waits for long. Then samples join it in their order wherever
    they still fit, until `lookahead` samples wait for the next pack.

    Args:
        order: numbers of samples, each at most `capacity` tokens long.
        lengths: (samples,) tokens of each sample.
        capacity: tokens of a pack, never exceeded.
        lookahead: samples that wait at most, at least 1.

    Yields:
        The samples of a pack; every sample is in exactly one.

    Raises:
        ValueError: a sample is longer than a pack.
    """
    coming = iter(order)
    waiting = list(islice(coming, lookahead))
    while waiting:
        pack, room, left, fresh = [], capacity, [], waiting
        while fresh:
            for sample in fresh:
                length = int(lengths[sample])
                if length <= room:
                    pack.append(sample)
                    room -= length
                else:
                    left.append(sample)
            fresh = list(islice(coming, lookahead - len(left)))
        if not pack:
            raise ValueError(f"sample {left[0]} of {lengths[left[0]]} tokens is longer than a pack of {capacity}.")
        yield pack
        waiting = left


class PackPlan:
    """The endless sequence of packs of a run: epoch after epoch, each shuffled anew and packed by itself.

    Pack p is a function of the arguments and of p alone. Only the packs of the latest two epochs are held, as integers.

    Args:
        samples: (k,) int64, numbers of the samples that are used.
        lengths, categories: (samples,) int64, by number of sample.
        capacity, lookahead: of `plan_packs`.
        seed: of the shuffle.
    """

    def __init__(
        self,
        samples: np.ndarray,
        lengths: np.ndarray,
        categories: np.ndarray,
        *,
        capacity: int,
        lookahead: int,
        seed: int,
    ) -> None:
        self.samples, self.lengths, self.categories = samples, lengths, categories
        self.capacity, self.lookahead, self.seed = capacity, lookahead, seed
        self._ends: list[int] = []  # number of packs up to the end of each epoch
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def pack(self, number: int) -> np.ndarray:
        """The samples of a pack, (s,) int64, in the order in which they stand in it."""
        epoch = next((i for i, end in enumerate(self._ends) if number < end), len(self._ends))
        while True:
            order, edges = self.epoch(epoch)
            begin = self._ends[epoch - 1] if epoch else 0
            if epoch == len(self._ends):
                self._ends.append(begin + len(edges) - 1)
            if number < self._ends[epoch]:
                place = number - begin
                return order[edges[place] : edges[place + 1]]
            epoch += 1

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """All packs of an epoch: the samples one pack after the other, (k,), and where each begins, (packs + 1,)."""
        if epoch not in self._epochs:
            shuffled = self.samples[shuffle_epoch(self.categories[self.samples], seed=self.seed, epoch=epoch)]
            packs = list(plan_packs(shuffled.tolist(), self.lengths, capacity=self.capacity, lookahead=self.lookahead))
            edges = np.cumsum([0, *map(len, packs)])
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = np.concatenate([np.array(p, dtype=np.int64) for p in packs]), edges
        return self._epochs[epoch]
