"""Records in one JSON array, as many data sets come, read by their places in the file."""

import hashlib
import mmap
import re
from pathlib import Path

from ...errors import DataError
from .places import PlacedRecords

# A whole string, or a bracket outside of one. Possessive, so that a string of megabytes costs no memory.
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


class JsonArraySource(PlacedRecords):
    """The objects of a file that holds one JSON array of objects.

    Raises:
        DataError: the file is something else, or is cut off.
    """

    remedy = "write it again, in UTF-8"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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
