"""Records in one JSON array, as many data sets come, read by their places in the file."""

import hashlib
import json
import mmap
import re
from array import array
from pathlib import Path
from typing import Any

from ...errors import DataError

# A whole string, or a bracket outside of one. Possessive, so that a string of megabytes costs no memory.
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


class JsonArraySource:
    """The objects of a file that holds one JSON array of objects.

    A first pass notes where each object lies, so that any is one seek away and one alone is ever parsed.

    Raises:
        DataError: the file is something else, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._ends = array("q"), array("q")
        with path.open("rb") as file:
            self._digest = hashlib.file_digest(file, "sha256").hexdigest()
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._find_objects(data)

    def _find_objects(self, data: mmap.mmap) -> None:
        depth = 0
        for mark in _MARKS.finditer(data):
            sign = data[mark.start() : mark.start() + 1]
            if depth == 0 and sign != b"[":
                break
            if sign in b"[{":
                if depth == 1:
                    self._starts.append(mark.start())
                depth += 1
            elif sign in b"]}":
                depth -= 1
                if depth == 1:
                    self._ends.append(mark.end())
                if depth == 0:
                    return
        raise DataError(f"{self.path}: is no whole JSON array of objects; fetch it again, or write one object a line.")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """File and number of the object, counted from 1."""
        return f"{self.path}: entry {index + 1}"

    def digest(self) -> str:
        """Checksum of the file."""
        return self._digest

    def read(self, index: int) -> Any:
        """Parse an object.

        Raises:
            DataError: it is no UTF-8 or no JSON.
        """
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            text = file.read(self._ends[index] - self._starts[index])
        try:
            return json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where(index)}: no valid JSON ({error}); write it again, in UTF-8.") from error
