"""What suites that are drawn from the project's own texts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import corpora_digest, load_corpora
from elastic_attention.tasks.drawing import SPLITS


class CorporaSuite:
    """Samples without end from texts; a subclass makes and scores them. See `Suite` for what the methods promise.

    Args:
        data: folder of `tasks.corpora`; None takes the small texts in the package.
        split: one that training never sees; None takes the suite's own.
    """

    default_split: ClassVar[str]
    default_samples: ClassVar[int]

    def __init__(self, name: str, *, data: Path | None = None, split: str | None = None) -> None:
        split = self.default_split if split is None else split
        if split not in SPLITS[1:]:
            raise DataError(f"split={split!r} is unknown; use {' or '.join(SPLITS[1:])}.")
        self.name, self.data, self.split = name, data, split

    @property
    def substitutes(self) -> Mapping[str, str]:
        """None: these samples stand in for nothing else."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The split, and a checksum of the texts."""
        return {"split": self.split, "corpora": corpora_digest(self.data)}

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DownloadError when the texts are missing or damaged."""
        load_corpora(self.data)

    def count_samples(self, task: str, wanted: int | None) -> int:
        """`wanted`, or the suite's own number."""
        return self.default_samples if wanted is None else wanted
