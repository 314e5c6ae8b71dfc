"""The packs of each step: the same global batch at any number of workers and ranks."""

import signal
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Subset

from ...errors import RecipeError
from ...tasks import KINDS, TRAINED_KINDS
from ...workers import end_with_parent
from .batch import PackedBatch, join_samples
from .config import DataConfig, PackConfig
from .corpus import Corpus
from .encoding import Encoder
from .formats import FormattedSource
from .generated import GeneratedSource
from .packing import PackPlan
from .sources import RecordSource, open_rows, open_source
from .weights import weigh_categories

_HELDOUT = "heldout"


class PackedSteps(Dataset[list[PackedBatch]]):
    """Item i is the list of forwards of step i on one rank. The step number is the whole state of the data.

    Args:
        config: of a recipe.
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
        self.config, self.packs, self.steps = config, config.packs, steps
        self.rank, self.world_size = rank, world_size
        if self.packs.per_step % world_size:
            raise RecipeError(
                f"data.packs.per_step={self.packs.per_step} does not divide by {world_size} ranks; use "
                f"{-(-self.packs.per_step // world_size) * world_size}."
            )
        self.corpus = open_corpus(config, tokenizer, seed=seed, categories=categories)
        self.plan = _plan_corpus(self.corpus, self.packs, seed, self.corpus.fitting.kept)

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


def stream_steps(dataset: PackedSteps, start: int) -> Iterator[list[PackedBatch]]:
    """The packs of the steps from `start` on, in order, read ahead by the workers of the recipe."""
    workers = dataset.config.workers
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, range(start, len(dataset))),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(number: int) -> None:
    end_with_parent(number)
    # A terminal sends Ctrl-C to every process, and a batch system SIGTERM; the trainer decides when its workers end.
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.SIG_IGN)


def kinds_of(config: DataConfig) -> tuple[str, ...]:
    """The kinds of generated samples.

    Raises:
        RecipeError: an unknown kind.
    """
    if unknown := sorted(set(config.kinds) - set(TRAINED_KINDS)):
        raise RecipeError(f"data.kinds has unknown kinds {unknown}; choose from {sorted(TRAINED_KINDS)}.")
    return config.kinds or tuple(KINDS)


def open_corpus(
    config: DataConfig,
    tokenizer: Any,
    *,
    seed: int,
    categories: Collection[str] | None = None,
    split: str = "train",
    samples: int | None = None,
) -> Corpus:
    """The samples of a recipe: its files, or the project's own tasks where it names none.

    Args:
        config: of a recipe.
        tokenizer: a fast transformers tokenizer.
        seed: of generated samples.
        categories: those that may occur, None = any.
        split: "train" or "heldout".
        samples: number of generated ones, None = as the recipe says.

    Raises:
        RecipeError: held-out samples are wanted of files and `heldout_files` is empty.
        DataError: as in `Corpus`.
    """
    packs, encoder = config.packs, Encoder(tokenizer, config.packs.template)
    sources = open_files(packs, split)
    if packs.has_files and not sources:
        raise RecipeError("data.packs.heldout_files is empty; name files of held-out records.")
    generated = GeneratedSource(
        kinds=kinds_of(config),
        lengths=config.lengths,
        count=packs.samples if samples is None else samples,
        corpora=config.corpora,
        encoder=encoder,
        seed=seed,
        split=split,
    )
    return Corpus(
        sources or [generated],
        encoder,
        capacity=packs.tokens,
        over_long=packs.over_long,
        known=categories,
        cache=packs.cache,
        workers=config.workers,
        bad_records=packs.bad_records,
    )


def open_files(packs: PackConfig, split: str) -> list[RecordSource]:
    """The files of a split: records, then data sets in their own formats.

    Raises:
        DataError: a file is missing, empty or of no known kind.
    """
    is_heldout = split == _HELDOUT
    found = [open_source(file) for file in (packs.heldout_files if is_heldout else packs.files)]
    for item in packs.sources:
        for file in item.heldout_files if is_heldout else item.files:
            rows, task = open_rows(file), item.task or item.format
            formatted = FormattedSource(
                rows=rows, format=item.format, category=item.category, task=task, shots=item.shots
            )
            found.append(formatted)
    return found


def read_heldout(config: DataConfig, tokenizer: Any, *, seed: int, per_task: int = 0) -> Iterator[PackedBatch]:
    """Every held-out sample once, in packs; the weights refer to all of them together.

    Args:
        config, tokenizer, seed: as in `open_corpus`.
        per_task: the first so many samples of each task, 0 = all.

    Raises:
        RecipeError, DataError: as in `open_corpus`.
    """
    count = per_task * len(kinds_of(config)) if per_task and not config.packs.has_files else None
    corpus = open_corpus(config, tokenizer, seed=seed, split=_HELDOUT, samples=count)
    kept = corpus.first_of_tasks(per_task) if per_task else corpus.fitting.kept
    order, edges = _plan_corpus(corpus, config.packs, seed, kept).epoch(0)
    weights = weigh_categories([corpus.category_names[corpus.categories[i]] for i in order])
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        samples = [corpus.sample(int(order[place]), weights[place]) for place in range(begin, end)]
        yield join_samples(samples, loss_on=config.loss_on)


def _plan_corpus(corpus: Corpus, packs: PackConfig, seed: int, samples: np.ndarray) -> PackPlan:
    return PackPlan(
        samples,
        corpus.lengths,
        corpus.categories,
        capacity=packs.tokens,
        lookahead=packs.lookahead,
        seed=seed,
    )
