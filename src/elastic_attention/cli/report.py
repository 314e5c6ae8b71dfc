"""`elastic-attn report`: pages, pictures and tables from records."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, check_target, open_console, write_json


def report(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="[RECORD]...", help="Records, as --json wrote them.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=check_target, help="One page of all records, and of --log where it is given."
        ),
    ] = None,
    head_map: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=check_target, help="Head maps of the record, .png or .svg.")
    ] = None,
    frontier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=check_target, help="Quality against sparsity, from a quality record, .png or .svg."
        ),
    ] = None,
    speed: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=check_target, help="Times of a GPU benchmark's record, .png or .svg."),
    ] = None,
    curves: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=check_target, help="Training curves of --log, .png or .svg.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="log.jsonl of a training run.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe of that run; its intervals become bands.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(metavar="FILE", help="Markdown file whose tables to renew.")] = None,
    results: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the records of the tables are.")] = Path(
        "results"
    ),
    check: Annotated[bool, typer.Option("--check", help="Only compare the tables; exit code 1 if one is old.")] = False,
    json: Json = None,
) -> None:
    """Make pages, pictures and tables from records."""
    from ..errors import ElasticAttentionError
    from ..records import build_record, read_record, write_file
    from ..training.recipe import load_recipe
    from ..viz import (
        read_training_log,
        render_report,
        save_curves,
        save_frontier,
        save_head_maps,
        save_speed,
        update_tables,
    )

    started, console = time.perf_counter(), open_console()
    loaded = [read_record(path) for path in records or ()]
    written: list[Path] = []
    for path, option in ((html, "--html"), (head_map, "--head-map"), (frontier, "--frontier"), (speed, "--speed")):
        if path is not None and not loaded and not (path is html and log is not None):
            raise ElasticAttentionError(f"{option} needs a record. Name one, such as results/demo.json.")
    if not any((html, head_map, frontier, speed, curves, tables)):
        raise ElasticAttentionError(
            "Nothing to make. Add --html, --head-map, --frontier, --speed, --curves or --tables."
        )
    intervals = {c: (i.low, i.high) for c, i in load_recipe(recipe).intervals.items()} if recipe else None
    if html is not None:
        training = None if log is None else read_training_log(log)
        write_file(html, render_report(loaded, training=training, intervals=intervals))
        written.append(html)
    if head_map is not None:
        save_head_maps(loaded[0]["metrics"].get("head_maps") or {}, head_map)
        written.append(head_map)
    if frontier is not None:
        save_frontier(loaded[0], frontier)
        written.append(frontier)
    if speed is not None:
        save_speed(loaded[0], speed)
        written.append(speed)
    if curves is not None:
        if log is None:
            raise ElasticAttentionError("--curves needs --log, the log.jsonl of a training run.")
        save_curves(log, curves, intervals=intervals)
        written.append(curves)
    stale = update_tables(tables, results, check) if tables is not None else []
    for path in written:
        console.print(f"Wrote {path}")
    if tables is not None:
        state = ", ".join(stale) or "none"
        console.print(f"Tables of {tables} {'that are old' if check else 'renewed'}: {state}")
    record = build_record(
        "report",
        config={"records": records or [], "written": written, "tables": tables, "check": check},
        model=None,
        data="records",
        device="any",
        seed=None,
        n=len(loaded),
        metrics={"rows": [{"table": name} for name in stale]},
        seconds=time.perf_counter() - started,
        bytes=None,
    )
    write_json(json, record, console)
    if check and stale:
        raise typer.Exit(1)
