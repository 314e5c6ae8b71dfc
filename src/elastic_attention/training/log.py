"""Curves of a run: JSON lines, which survive a resume, and TensorBoard where it is installed."""

import json
import math
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..records import write_file

FILE = "log.jsonl"


class TrainingLog:
    """Appends one object a step to `log.jsonl` and the same numbers to TensorBoard.

    Args:
        folder: of the run.
        finished: steps already done; later lines of an interrupted run are dropped, they will be written again.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        kept = [line for line in self._read() if _step_of(line) <= finished]
        write_file(self.path, "".join(f"{line}\n" for line in kept))
        self._stream = self.path.open("a", encoding="utf-8")
        self._board = _open_board(folder, finished)

    def _read(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8").splitlines()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log the numbers of a step; nested dictionaries become curves of one chart.

        Raises:
            CheckpointError: the disk is full.
        """
        try:
            self._stream.write(json.dumps({"step": step, **values}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written at step {step} ({error.strerror}). Free some space and run the same "
                "command again; it goes on from the last checkpoint."
            ) from error
        if self._board is not None:
            for name, value in _flatten(values).items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Bring all lines to the disk, so that none is younger than the checkpoint that follows."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # a killed run may leave half a line
        return math.inf


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
