"""How several processes share the work of a study: whoever holds the lock of a folder fills it, until time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(Exception):
    """Another process is at it, or at what it needs; come back later."""


class TimeUp(Exception):
    """The minutes are used up; what is done is on the disk."""


@dataclass(kw_only=True)
class TimedWork:
    """Work with a time limit.

    Attributes:
        deadline: of `time.monotonic()`; past it nobody is trained or asked, and what is on the disk is still read.
    """

    deadline: float

    @property
    def is_late(self) -> bool:
        """Is it past the deadline?"""
        return time.monotonic() >= self.deadline

    def check_time(self, label: str = "") -> None:
        """Raise TimeUp past the deadline; `label` is what a runner has just done."""
        if self.is_late:
            raise TimeUp


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
