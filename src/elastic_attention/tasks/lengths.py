"""What is said where a length is too short for a task: in the words of the command line, with the least that works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from elastic_attention.errors import DataError

if TYPE_CHECKING:
    from elastic_attention.tasks.suite import Suite

MAX_TRIES = 8


class TooShort(DataError):
    """A sample does not fit the tokens that are there for it.

    Attributes:
        missing: how many more it needs, at least.
    """

    def __init__(self, message: str, missing: int = 1) -> None:
        super().__init__(message)
        self.missing = missing


def describe_least(task: str, length: int, least: int) -> str:
    """Task, length and the least one that works, in tokens of prompt and answer; the sentence is open at its end."""
    return f"--lengths {length:,} is too short for {task}; ask for {least:,} or more"


def find_working_length(make: Callable[[int], object], length: int, error: TooShort) -> int:
    """A length at which `make` works, as short as what is missing allows; another length draws another sample.

    Args:
        make: makes the sample at a length in tokens.
        length: at which it raised `error`.
    """
    for _ in range(MAX_TRIES):
        length += error.missing
        try:
            make(length)
        except TooShort as again:
            error = again
        else:
            break
    return length


def check_least_lengths(suite: Suite, tasks: Sequence[str], lengths: Sequence[int]) -> None:
    """Refuse lengths at which no sample of a task can be made, as far as the suite knows that without a tokenizer.

    Args:
        lengths: tokens of prompt and answer; those below 1 are another matter.

    Raises:
        DataError: names lengths, tasks, and the least length of each.
    """
    least = {task: suite.find_least_length(task) for task in tasks}
    short = sorted({length for length in lengths if 0 < length < max(least.values(), default=0)})
    if not short:
        return
    groups: dict[int, list[str]] = {}
    for task, tokens in least.items():
        if tokens > short[0]:
            groups.setdefault(tokens, []).append(task)
    wanted = "; ".join(f"{tokens:,} or more for {', '.join(names)}" for tokens, names in sorted(groups.items()))
    named = ", ".join(f"{length:,}" for length in short)
    raise DataError(f"--lengths {named}: too short. Ask for {wanted}; or leave these tasks out.")
