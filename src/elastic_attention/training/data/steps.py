"""The packs of each step: the same global batch at any number of workers and ranks."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...errors import RecipeError
from ..batches import kinds_of
from ..recipe import DataConfig, PackConfig
from .batch import PackedBatch, join_samples
from .corpus import Corpus
from .encoding import Encoder
from .generated import GeneratedSource
from .packing import PackPlan
from .sources import RecordSource, open_source
from .weights import weigh_categories

_HELDOUT = "heldout"


class PackedSteps(Dataset[list[PackedBatch]]):
    """Item i is the list of forwards of step i on one rank. The step number is the whole state of the data.

    Args:
        config: of a recipe with a [data.packs] table.
        tokenizer: a fast transformers tokenizer.
        seed, steps: of the run.
        categories: those that have an interval, None = any.
        rank, world_size: of the data-parallel group. Together the ranks hold the packs of the step, each once, whatever
            `world_size` is; packs of like cost are computed at the same time.

    Raises:
        RecipeError: `world_size` does not divide the packs of a step.
        DataError: a record is malformed, of another category, or too long for the policy.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Any,
        *,
        seed: int,
        steps: int,
        categories: Collection[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config, self.packs, self.steps = config, _packs_of(config), steps
        self.rank, self.world_size = rank, world_size
        if self.packs.per_step % world_size:
            raise RecipeError(
                f"data.packs.per_step={self.packs.per_step} does not divide by {world_size} ranks; use "
                f"{-(-self.packs.per_step // world_size) * world_size}."
            )
        self.corpus = open_corpus(config, tokenizer, seed=seed, categories=categories)
        self.plan = _plan_corpus(self.corpus, self.packs, seed)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[PackedBatch]:
        packs = self.packs_of_step(step)
        weights = iter(weigh_categories([self._category(i) for pack in packs for i in pack]))
        weighted = [[(int(i), next(weights)) for i in pack] for pack in packs]
        return [
            join_samples([self.corpus.sample(i, weight) for i, weight in pack], loss_on=self.config.loss_on)
            for pack in weighted[self.rank :: self.world_size]
        ]

    def packs_of_step(self, step: int) -> list[np.ndarray]:
        """The sample numbers of all packs of a step on all ranks, those of the costliest attention first."""
        first = step * self.packs.per_step
        packs = [self.plan.pack(number) for number in range(first, first + self.packs.per_step)]
        return sorted(packs, key=lambda pack: -int((self.corpus.lengths[pack] ** 2).sum()))

    def _category(self, sample: int) -> str:
        return self.corpus.category_names[self.corpus.categories[sample]]


def open_corpus(
    config: DataConfig,
    tokenizer: Any,
    *,
    seed: int,
    categories: Collection[str] | None = None,
    split: str = "train",
) -> Corpus:
    """The samples of a recipe: its files, or the project's own tasks where it names none.

    Args:
        config: of a recipe with a [data.packs] table.
        tokenizer: a fast transformers tokenizer.
        seed: of generated samples.
        categories: those that may occur, None = any.
        split: "train" or "heldout".

    Raises:
        RecipeError: held-out samples are wanted of files and `heldout_files` is empty.
        DataError: as in `Corpus`.
    """
    packs, encoder = _packs_of(config), Encoder(tokenizer, _packs_of(config).template)
    files = packs.heldout_files if split == _HELDOUT else packs.files
    if packs.files and not files:
        raise RecipeError("data.packs.heldout_files is empty; name files of held-out records.")
    generated = GeneratedSource(
        kinds=kinds_of(config),
        lengths=config.lengths,
        count=packs.samples,
        corpora=config.corpora,
        encoder=encoder,
        seed=seed,
        split=split,
    )
    sources: list[RecordSource] = [open_source(file) for file in files] or [generated]
    return Corpus(
        sources,
        encoder,
        capacity=packs.tokens,
        over_long=packs.over_long,
        known=categories,
        cache=packs.cache,
        workers=config.workers,
    )


def read_heldout(config: DataConfig, tokenizer: Any, *, seed: int) -> Iterator[PackedBatch]:
    """Every held-out sample once, in packs; the weights refer to all of them together.

    Raises:
        RecipeError, DataError: as in `open_corpus`.
    """
    corpus = open_corpus(config, tokenizer, seed=seed, split=_HELDOUT)
    order, edges = _plan_corpus(corpus, _packs_of(config), seed).epoch(0)
    weights = weigh_categories([corpus.category_names[corpus.categories[i]] for i in order])
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        samples = [corpus.sample(int(order[place]), weights[place]) for place in range(begin, end)]
        yield join_samples(samples, loss_on=config.loss_on)


def _plan_corpus(corpus: Corpus, packs: PackConfig, seed: int) -> PackPlan:
    return PackPlan(
        corpus.fitting.kept,
        corpus.lengths,
        corpus.categories,
        capacity=packs.tokens,
        lookahead=packs.lookahead,
        seed=seed,
    )


def _packs_of(config: DataConfig) -> PackConfig:
    if config.packs is None:
        raise RecipeError("the recipe has no [data.packs] table; add one to train on packs.")
    return config.packs
