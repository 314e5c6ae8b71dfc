"""Records of a JSON file, each read by its place in the file."""

import json
from array import array
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError


class PlacedRecords:
    """What a first pass over a file notes, so that any record is one seek away and one alone is ever parsed.

    A subclass fills `_starts` and `_ends` (bytes) and `_digest` (checksum of the file), and says `where` a record lies.
    """

    remedy: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path, self._digest = path, ""
        self._starts, self._ends = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """File and place, for messages."""
        return f"{self.path}: entry {index + 1}"

    def digest(self) -> str:
        """Checksum of the file."""
        return self._digest

    def read(self, index: int) -> Any:
        """Parse a record.

        Raises:
            DataError: it is no UTF-8 or no JSON.
        """
        # Opened anew each time: worker processes must not share a position in the file.
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            text = file.read(self._ends[index] - self._starts[index])
        try:
            return json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where(index)}: no valid JSON ({error}); {self.remedy}.") from error
