"""One process at a time fills a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .errors import ElasticAttentionError

# Processes that made samples for a killed run may hold its lock until they see that it has ended.
_LOCK_SECONDS = 2.0


@contextlib.contextmanager
def hold_folder(
    folder: Path, lock: str, *, taken: str, remedy: str, kind: type[ElasticAttentionError] = ElasticAttentionError
) -> Iterator[None]:
    """Inside, no other process holds this lock of `folder`, which is made if missing.

    The system drops the lock when the process ends, however it ends; the empty file that stays locks nothing.

    Args:
        folder: what is filled.
        lock: name of the file in it.
        taken: message where another process holds it.
        remedy: what to do where nothing can be written.

    Raises:
        kind: another process does, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / lock, timeout=_LOCK_SECONDS))
        except Timeout:
            raise kind(taken) from None
        except (FileExistsError, NotADirectoryError) as error:
            raise kind(f"Cannot write to {folder}: there is a file in the way. {remedy}") from error
        except OSError as error:
            raise kind(f"Cannot write to {folder}: {error.strerror or error}. {remedy}") from error
        yield
