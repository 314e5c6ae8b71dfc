"""Curves of a run: JSON lines, which survive a resume, and TensorBoard where it is installed."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..records import write_file

_logger = logging.getLogger(__name__)
FILE = "log.jsonl"


class TrainingLog:
    """Appends one object a step to `log.jsonl` and the same numbers to TensorBoard.

    The lines are strict JSON: a number that is none is null.

    Args:
        folder: of the run.
        finished: steps already done; later lines of an interrupted run are dropped, they will be written again.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        for leftover in folder.glob(f".{FILE}.*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        kept = [line for line in self._read() if _step_of(line) <= finished]
        write_file(self.path, "".join(f"{line}\n" for line in kept))
        self._stream = self.path.open("a", encoding="utf-8")
        self._board = _open_board(folder, finished)

    def _read(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8", errors="replace").splitlines()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log the numbers of a step; nested dictionaries become curves of one chart.

        Raises:
            CheckpointError: the disk is full.
        """
        with self._naming_refusals(f"at step {step}"):
            self._stream.write(json.dumps(_without_nan({"step": step, **values}), allow_nan=False) + "\n")
            self._stream.flush()
        if self._board is not None:
            try:
                for name, value in _flatten(values).items():
                    self._board.add_scalar(name, value, step)
            except OSError as error:  # the lines hold the same numbers
                _logger.warning("TensorBoard files end at step %d: %s.", step, error)
                self._board = None

    def sync(self) -> None:
        """Bring all lines to the disk, so that none is younger than the checkpoint that follows.

        Raises:
            CheckpointError: the disk is full.
        """
        with self._naming_refusals("to the disk"):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the files; every line was flushed when it was written."""
        for file in (self._stream, self._board):
            if file is not None:
                with contextlib.suppress(OSError):  # of a full disk, which `write` has named
                    file.close()

    @contextlib.contextmanager
    def _naming_refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written {what} ({error.strerror}). Free some space and run the same command "
                "again; it goes on from the last checkpoint."
            ) from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):  # a killed run may leave half a line
        return math.inf


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = float(value)
    return flat


def _open_board(folder: Path, finished: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=finished + 1)
