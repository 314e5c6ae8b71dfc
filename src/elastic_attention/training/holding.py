"""One process at a time writes into the folder of a run."""

from contextlib import AbstractContextManager
from pathlib import Path

from ..errors import CheckpointError
from ..locks import hold_folder

LOCK = ".run.lock"


def hold_output(folder: Path) -> AbstractContextManager[None]:
    """Inside, no other run writes into `folder`, which is made if missing.

    Raises:
        CheckpointError: another run does, or nothing can be written there.
    """
    return hold_folder(
        folder,
        LOCK,
        taken=f"Another process is training in {folder}. Wait until it is done, stop it with a file named stop in that "
        "folder, or choose another output folder.",
        remedy="Free some space or choose another output folder.",
        kind=CheckpointError,
    )
