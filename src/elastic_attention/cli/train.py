"""`elastic-attn train`: run a recipe, or go on with it."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Json, check_folder, open_console, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..training.recipe import DataConfig


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, such as those in recipes/.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", callback=check_folder, help="Default: runs/ and the recipe's name."),
    ] = None,
    device: Device = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop with a checkpoint when this much time is up, loading included.")
    ] = None,
    json: Json = None,
) -> None:
    """Train routers. Ctrl-C stops after the step under way, and the same command again goes on from there.

    torchrun starts it on several GPUs.
    """
    from ..evaluation.session import choose_device, describe_device, measure_peak_bytes
    from ..records import build_record
    from ..settings import to_dict
    from ..training.parallel.launch import is_first_process, train_on_ranks
    from ..training.recipe import load_recipe

    started, console = time.perf_counter(), open_console()
    folder = output or Path("runs") / recipe.stem
    place = choose_device(device)
    loaded = load_recipe(recipe)
    with _telling(is_first_process()):
        metrics = train_on_ranks(loaded, folder, device=str(place), max_seconds=max_seconds)
    if not is_first_process():
        return
    state = "finished" if metrics["is_finished"] else "stopped; run it again to go on"
    console.print(f"{metrics['steps']} of {loaded.steps} steps in {folder}: {state}")
    if skipped := metrics["skipped_steps"]:
        console.print(f"{skipped} steps were left out, their loss or gradient is no number; log.jsonl names them")
    console.print(f"Routers: {metrics['adapter']}")
    _show_validation(console, metrics["validation"])
    _draw_curves(console, folder, {name: (i.low, i.high) for name, i in loaded.intervals.items()})
    record = build_record(
        "train",
        config=to_dict(loaded),
        model=loaded.model,
        data=_describe_data(loaded.data),
        device=describe_device(place),
        seed=loaded.seed,
        n=metrics["steps"],
        metrics=metrics,
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(place),
    )
    write_json(json, record, console)


class _ToStderr(logging.Handler):
    """Messages as they are; looks stderr up each time, because a progress bar stands in for it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def _telling(is_told: bool) -> Iterator[None]:
    """Inside, the trainer says what it does."""
    logger, handler = logging.getLogger("elastic_attention.training"), _ToStderr()
    before = logger.level
    if is_told:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _describe_data(data: "DataConfig") -> Any:
    files = [Path(file).name for file in data.packs.files]
    files += [f"{Path(file).name} ({source.format})" for source in data.packs.sources for file in source.files]
    return files or data.corpora or "texts shipped with the package"


def _show_validation(console: "Console", validation: Any) -> None:
    from rich.table import Table

    if not validation:
        return
    table = Table("held out", "samples", "loss", "tokens", "answers", "MSR", "interval", "outside")
    for name, facts in validation["categories"].items():
        numbers = [f"{facts[key]:.3f}" for key in ("loss", "accuracy", "exact", "msr")]
        if "outside" in facts:
            numbers += [
                f"{facts['low']:.2f}–{facts['high']:.2f}",
                f"{facts['outside']:.3f}" if facts["outside"] else "no",
            ]
        table.add_row(name, str(facts["samples"]), *numbers)
    console.print(table)
    console.print("tokens, answers: share that is right; outside: distance of the MSR to the interval of the recipe")


def _draw_curves(console: "Console", folder: Path, intervals: dict[str, tuple[float, float]]) -> None:
    from ..errors import BackendUnavailable
    from ..viz import save_curves

    path = folder / "curves.svg"
    try:
        save_curves(folder / "log.jsonl", path, intervals=intervals)
    except BackendUnavailable as error:  # the run itself needs no plot
        console.print(f"No curves: {error}")
        return
    console.print(f"Curves: {path}")
