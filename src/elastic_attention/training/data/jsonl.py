"""Records as JSON lines, read by their places in the file."""

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any

from ...errors import DataError


class JsonLinesSource:
    """One JSON object a line, UTF-8; blank lines are passed over.

    A first pass notes where each line begins and takes the file's checksum, so that any row is one seek away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines = array("q"), array("q")
        checksum, offset = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                checksum.update(line)
                if line.strip():
                    self._starts.append(offset)
                    self._lines.append(number)
                offset += len(line)
        self._digest = checksum.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """`file:line`."""
        return f"{self.path}:{self._lines[index]}"

    def digest(self) -> str:
        """Checksum of the file."""
        return self._digest

    def read(self, index: int) -> Any:
        """Parse a line.

        Raises:
            DataError: it is no UTF-8 or no JSON.
        """
        # Opened anew each time: worker processes must not share a position in the file.
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            return json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.where(index)}: no valid JSON ({error}); write one object a line, in UTF-8."
            ) from error
