"""Options that several commands share, and what every command does with them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ElasticAttentionError
from ..models.budget import check_budget

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..evaluation.session import Session


class Decode(StrEnum):
    """What sparse heads keep and read while decoding."""

    sparse = "sparse"
    full = "full"


class Engine(StrEnum):
    """What runs the model of a server."""

    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


class Dtype(StrEnum):
    """Precision of the model."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _check_budget(budget: float) -> float:
    try:
        return check_budget(budget, "--budget ")
    except ValueError as error:
        raise ElasticAttentionError(str(error)) from error


def check_target(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a place where no file can be written at the end: before the work, not behind it."""
    if path is None:
        return None
    if path.is_dir():
        raise ElasticAttentionError(f"{option.opts[0]} {path} is a folder; name a file.")
    if path.exists() and not path.is_file():
        raise ElasticAttentionError(f"{option.opts[0]} {path} is no regular file; name a file.")
    # A link stays, and the file behind it is replaced.
    _probe_folder(f"{option.opts[0]} {path}", Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent)
    return path


def check_folder(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a folder that cannot be filled: before the work, not behind it."""
    if path is not None and path.exists() and not path.is_dir():
        raise ElasticAttentionError(f"{option.opts[0]} {path} is a file; name a folder.")
    if path is not None:
        _probe_folder(f"{option.opts[0]} {path}", path)
    return path


def _probe_folder(name: str, folder: Path) -> None:
    """Write a nameless file into the folder, or into the nearest one above it that exists; nothing is left behind."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise ElasticAttentionError(f"{name}: {nearest} is a file; name a folder.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ElasticAttentionError(f"{name} cannot be written ({nearest}: {reason}); choose another place.") from error


Model = Annotated[str, typer.Option(help="'smollm2' (fetched once), a folder, or a hub id.")]
Routers = Annotated[
    str | None, typer.Option(help="Adapter folder or hub id. Default: the routers that ship with the package.")
]
PromptFile = Annotated[Path, typer.Option(help="Text file to read, UTF-8; - reads stdin.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … Default: the GPU if there is one.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Default: bfloat16 where the device has it, else float32.")
]
Budget = Annotated[
    float, typer.Option(callback=_check_budget, help="Added to every sparse logit: above 0 sparser, below 0 fuller.")
]
DecodeOption = Annotated[Decode, typer.Option("--decode", help="Sparse heads keep sink and window only, or all keys.")]
Backend = Annotated[
    str,
    typer.Option(help="auto, hopper or triton (GPUs), cpu (PyTorch's kernels, any device), reference (slow, exact)."),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=check_target, help="Write the record of this run."),
]


def open_console() -> "Console":
    """The console of a command's results."""
    from rich.console import Console

    return Console(highlight=False)


def open_model(
    model: str,
    *,
    routers: str | None,
    device: str | None,
    dtype: Dtype | None,
    decode: Decode = Decode.sparse,
    backend: str = "auto",
    budget: float = 0.0,
) -> "Session":
    """`open_session` from a command's options, with a spinner."""
    from ..evaluation.session import open_session
    from ..models.embedded import ALIAS, ensure_embedded_model

    if model == ALIAS:
        ensure_embedded_model()  # shows its own progress
    with show_progress() as progress:
        progress.add_task(f"loading {model}", total=None)
        return open_session(
            model,
            routers=routers,
            device=device,
            dtype=None if dtype is None else dtype.value,
            decode=decode.value,
            backend=backend,
            budget=budget,
        )


@contextmanager
def show_progress() -> "Iterator[Progress]":
    """A progress bar on stderr that leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def write_json(path: Path | None, record: dict[str, Any], console: "Console") -> None:
    """Write the record where --json asks for it, and say so."""
    from ..records import write_record

    if path is not None:
        write_record(path, record)
        console.print(f"Record: {path}")
