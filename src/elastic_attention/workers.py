"""Processes that make samples ahead of the model."""

import multiprocessing
import os
import threading


def end_with_parent(number: int = 0) -> None:
    """Let this worker end as soon as the process that started it has ended, killed or not.

    A worker that waits for room in the pipe to a reader that was killed would wait for ever. `DataLoader` calls it with
    the number of the worker; in a process that is nobody's worker it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_await_end, args=(parent,), daemon=True).start()


def _await_end(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
