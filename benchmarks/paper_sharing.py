"""How several processes share the work of a study: whoever holds the lock of a folder fills it, the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(Exception):
    """Another process is at it, or at what it needs; come back later."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Inside, no other process fills the folder.

    Raises:
        Busy: another one does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except Timeout:
        raise Busy(folder.name) from None
