"""The bar of a run: steps done, loss and sparsity of the last one, and how long it will take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def show_steps(start: int, total: int, *, is_shown: bool) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Inside, a bar on stderr where that is a terminal, and nothing elsewhere.

    Args:
        start, total: steps done before, and in the end.
        is_shown: False keeps it quiet, as on the other processes of a run.

    Yields:
        A function of the steps done and of what the log says about the last one, which moves the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not (is_shown and console.is_terminal))
    task = bar.add_task("", total=total, completed=start)

    def advance(done: int, values: dict[str, Any]) -> None:
        shares = list(values["msr"].values())
        words = f"loss {values['loss']:.3f}  MSR {sum(shares) / len(shares):.2f}"
        bar.update(task, completed=done, description=words)

    with bar:
        yield advance
