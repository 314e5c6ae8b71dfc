"""The samples of each step, made ahead by worker processes."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import RecipeError
from ..models.answers import AnswerBatch, collate_rows, draw_row, pad_token
from ..tasks import KINDS, load_corpora
from .data.weights import weigh_categories
from .recipe import DataConfig

Batches_co = TypeVar("Batches_co", covariant=True)
_MAX_ROWS_PER_STEP = 4096


def kinds_of(config: DataConfig) -> tuple[str, ...]:
    """The kinds a run trains on.

    Raises:
        RecipeError: an unknown kind.
    """
    if unknown := sorted(set(config.kinds) - set(KINDS)):
        raise RecipeError(f"data.kinds has unknown kinds {unknown}; choose from {sorted(KINDS)}.")
    return config.kinds or tuple(KINDS)


class Steps(Protocol[Batches_co]):
    """The forwards of each step, by number of the step: padded (`StepDataset`) or packed (`data.steps.PackedSteps`)."""

    config: DataConfig

    def __len__(self) -> int:
        """Number of steps."""
        ...

    def __getitem__(self, step: int) -> Batches_co:
        """The forwards of a step."""
        ...


class StepDataset(Dataset[list[AnswerBatch]]):
    """Item i is the list of forwards of step i. Samples depend on (seed, step) only, not on workers or resumption.

    Raises:
        RecipeError: an unknown kind, or a recipe with packs, which `data.steps.PackedSteps` reads.
    """

    def __init__(self, config: DataConfig, tokenizer: Any, *, seed: int, steps: int, split: str = "train") -> None:
        if config.packs is not None:
            raise RecipeError("[data.packs] asks for packs, and these are padded batches; remove the table.")
        self.config, self.tokenizer, self.seed, self.steps, self.split = config, tokenizer, seed, steps, split
        self.turns = _alternate_categories(kinds_of(config))
        self.corpora = load_corpora(config.corpora)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[AnswerBatch]:
        lengths = self.config.lengths
        length = lengths[step % len(lengths)]
        count = min(_MAX_ROWS_PER_STEP, max(2, self.config.tokens_per_step // length))
        first = step // len(lengths) * count
        rows = [
            draw_row(
                self.turns[(first + i) % len(self.turns)],
                seed=self.seed,
                index=step * _MAX_ROWS_PER_STEP + i,
                length=length,
                corpora=self.corpora,
                tokenizer=self.tokenizer,
                split=self.split,
            )
            for i in range(count)
        ]
        size, pad = self.config.rows_per_forward, pad_token(self.tokenizer)
        cuts = range(0, len(rows), size)
        return [collate_rows(rows[i : i + size], pad=pad, loss_on=self.config.loss_on) for i in cuts]


def _alternate_categories(kinds: Sequence[str]) -> list[str]:
    """An order of the kinds in which categories take turns, so that small steps hold all of them."""
    queues: dict[str, list[str]] = {}
    for kind in kinds:
        queues.setdefault(KINDS[kind].category, []).append(kind)
    longest = max(len(queue) for queue in queues.values())
    return [queue[i % len(queue)] for i in range(longest) for queue in queues.values()]


def weigh_samples(batches: Sequence[AnswerBatch]) -> list[Tensor]:
    """`weigh_categories` of the whole step, (B,) float32 a batch."""
    weights = torch.tensor(weigh_categories([row.category for batch in batches for row in batch.rows]))
    return list(weights.split([len(batch.rows) for batch in batches]))


def stream_steps(dataset: Steps[Batches_co], start: int) -> Iterator[Batches_co]:
    """Batches of the steps from `start` on, in order."""
    workers = dataset.config.workers
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, range(start, len(dataset))),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)
