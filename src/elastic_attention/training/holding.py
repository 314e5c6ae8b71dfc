"""One process at a time writes into the folder of a run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError

LOCK = ".run.lock"
# Processes that made samples for a killed run may hold its lock until they see that it has ended.
_LOCK_SECONDS = 2.0


@contextlib.contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Inside, no other run writes into `folder`, which is made if missing.

    The system drops the lock when the process ends, however it ends; the empty file that stays locks nothing.

    Raises:
        CheckpointError: another run does, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=_LOCK_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"Another process is training in {folder}. Wait until it is done, stop it with a file named stop in that "
            "folder, or choose another output folder."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"Cannot write to {folder}: {error.strerror or error}. Free some space or choose another output folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
