"""Tokenised samples on disk: all tokens in one mapped file, and a table of integers that says where each lies."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...records import write_file
from .encoding import EncodedSample

FORMAT = 2
TOKENS, TABLE, FACTS = "tokens.u32", "samples.i64", "store.json"
# Columns of the table; the two names are numbers of the lists in the facts.
COLUMNS = ("offset", "length", "context_first", "context_last", "question_first", "question_last", "response_first",
           "category", "task", "row")  # fmt: skip


class StoreWriter:
    """Writes samples one after the other into an empty folder; `finish` makes it a store.

    Memory holds one sample at a time, and its row of integers is written at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._offset, self._count = folder, 0, 0
        self._skipped: list[str] = []
        self._largest = 0
        self._names: dict[str, dict[str, int]] = {"category": {}, "task": {}}
        self._tokens, self._table = (folder / TOKENS).open("wb"), (folder / TABLE).open("wb")

    def skip(self, reason: str) -> None:
        """Note a row that is left out."""
        self._skipped.append(reason)

    def add(self, sample: EncodedSample, category: str, task: str) -> None:
        """Append the sample of the next row."""
        numbers = [self._names[kind].setdefault(name, len(self._names[kind])) for kind, name in
                   (("category", category), ("task", task))]  # fmt: skip
        length = len(sample.tokens)
        row = [self._offset, length, *sample.context, *sample.question, sample.response[0], *numbers]
        row.append(self._count + len(self._skipped))
        self._tokens.write(sample.tokens.astype("<u4").tobytes())
        self._table.write(np.array(row, dtype="<i8").tobytes())
        self._offset, self._count = self._offset + length, self._count + 1
        self._largest = max(self._largest, int(sample.tokens.max()))

    def finish(self) -> None:
        """Write the facts last, so that a folder with facts is whole.

        Raises:
            DataError: every row was left out.
        """
        if not self._count:
            raise DataError(f"no record is left, {len(self._skipped)} are malformed; the first: {self._skipped[0]}")
        for file in (self._tokens, self._table):
            file.flush()
            os.fsync(file.fileno())
        names = {f"{kind}_names": list(numbers) for kind, numbers in self._names.items()}
        counts = {
            "format": FORMAT,
            "samples": self._count,
            "tokens": self._offset,
            "skipped": self._skipped,
            "largest_token": self._largest,
        }
        self.close()
        write_file(self.folder / FACTS, json.dumps(counts | names, indent=1))

    def close(self) -> None:
        """Close the files."""
        self._tokens.close()
        self._table.close()


class SampleStore:
    """A finished store, read-only. Tokens stay on disk; what is held is the mapped table of integers.

    Raises:
        DataError: a file is missing, cut off or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        remedy = f"delete {folder}; it will be made again."
        try:
            self.facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            sizes = [(folder / name).stat().st_size for name in (TOKENS, TABLE)]
            wanted = [self.facts["tokens"] * 4, self.facts["samples"] * 8 * len(COLUMNS)]
            names = self.facts["category_names"], self.facts["task_names"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: no whole store of samples ({error!r}); {remedy}") from error
        if sizes != wanted or self.facts.get("format") != FORMAT:
            raise DataError(f"{folder}: files of {sizes} bytes, expected {wanted} in format {FORMAT}; {remedy}")
        self.category_names, self.task_names = names
        shape = (self.facts["samples"], len(COLUMNS))
        self.table: np.ndarray = np.memmap(folder / TABLE, dtype="<i8", mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        """(samples,) int64, one of `COLUMNS`."""
        return np.asarray(self.table[:, COLUMNS.index(name)])

    def read_tokens(self, index: int, pieces: Iterable[tuple[int, int]]) -> np.ndarray:
        """The tokens of a sample in the given [first, last) pieces, joined, (n,) int64."""
        offset = int(self.table[index, 0])
        tokens = np.memmap(self.folder / TOKENS, dtype="<u4", mode="r")
        return np.concatenate([tokens[offset + first : offset + last] for first, last in pieces]).astype(np.int64)
