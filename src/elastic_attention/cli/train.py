"""`elastic-attn train`: run a recipe, or go on with it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, open_console, write_json


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, such as those in recipes/.")],
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: runs/ and the recipe's name.")] = None,
    device: Device = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after a checkpoint when this much time is up.")
    ] = None,
    json: Json = None,
) -> None:
    """Train routers. The same command again goes on from the last checkpoint."""
    from ..config import to_dict
    from ..evaluation.session import choose_device, describe_device, measure_peak_bytes
    from ..records import build_record
    from ..training.recipe import load_recipe
    from ..training.trainer import train as train_routers

    started, console = time.perf_counter(), open_console()
    folder = output or Path("runs") / recipe.stem
    place = choose_device(device)
    loaded = load_recipe(recipe)
    metrics = train_routers(loaded, folder, device=str(place), max_seconds=max_seconds)
    state = "finished" if metrics["is_finished"] else "stopped; run it again to go on"
    console.print(f"{metrics['steps']} of {loaded.steps} steps in {folder}: {state}")
    if metrics.get("adapter"):
        console.print(f"Routers: {metrics['adapter']}")
    record = build_record(
        "train",
        config=to_dict(loaded),
        model=loaded.model,
        data=loaded.data.corpora or "texts shipped with the package",
        device=describe_device(place),
        seed=loaded.seed,
        n=metrics["steps"],
        metrics=metrics,
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(place),
    )
    write_json(json, record, console)
