"""Records as JSON lines, read by their places in the file."""

import hashlib
from array import array
from pathlib import Path

from .places import PlacedRecords


class JsonLinesSource(PlacedRecords):
    """One JSON object a line, UTF-8; blank lines are passed over."""

    remedy = "write one object a line, in UTF-8"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lines = array("q")
        checksum, offset = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                checksum.update(line)
                if line.strip():
                    self._starts.append(offset)
                    self._ends.append(offset + len(line))
                    self._lines.append(number)
                offset += len(line)
        self._digest = checksum.hexdigest()

    def where(self, index: int) -> str:
        """`file:line`."""
        return f"{self.path}:{self._lines[index]}"
