"""Ending a run early without losing a step: a signal, a file, or a time limit."""

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_logger = logging.getLogger(__name__)
STOP_FILE = "stop"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Inside a `with`, the first Ctrl-C or SIGTERM asks for a stop after the step under way; the second is obeyed.

    Args:
        folder: of the run; a file named `stop` in it asks for a stop too, and is removed when the run obeys.
        max_seconds: ask for a stop after this time, None = never.
    """

    def __init__(self, folder: Path, max_seconds: float | None) -> None:
        self.file, self._signal = folder / STOP_FILE, 0
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._saved: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._saved = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, self._saved[number])
        _logger.warning("Stopping after this step; once more stops at once.")

    @property
    def reason(self) -> str | None:
        """Why to stop now, None to go on."""
        if self._signal:
            return signal.Signals(self._signal).name
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "the time is up"
        return f"there is a file {self.file}" if self.file.exists() else None

    def obey(self) -> None:
        """The run stops: take the file away, so that the next start goes on."""
        self.file.unlink(missing_ok=True)
