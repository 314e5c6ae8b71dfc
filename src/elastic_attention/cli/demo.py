"""`elastic-attn demo`: eight prompts, dense and elastic, a table and a report."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Decode,
    DecodeOption,
    Device,
    DtypeOption,
    Json,
    check_target,
    open_console,
    open_model,
    show_progress,
    write_json,
)

if TYPE_CHECKING:
    from rich.table import Table

MODEL = "smollm2"


def demo(
    report: Annotated[Path, typer.Option(metavar="FILE", callback=check_target, help="The HTML report.")] = Path(
        "demo-report.html"
    ),
    json: Json = None,
    device: Device = None,
    dtype: DtypeOption = None,
    decode: DecodeOption = Decode.sparse,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    routers: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Answer prompts of different kinds with SmolLM2-135M, dense and elastic, side by side.

    Fetches the model once (about 93 MB). Exit code 1: routed heads answer fewer prompts right than the base model.
    """
    from ..evaluation.demo import PROMPTS, answer_prompts, build_demo_record, loses_answers, make_prompts
    from ..evaluation.session import describe_device
    from ..records import write_file
    from ..viz import render_report

    started, console = time.perf_counter(), open_console()
    session = open_model(MODEL, routers=routers, device=device, dtype=dtype, decode=decode)
    prompts = make_prompts(session, PROMPTS[:limit])
    console.print(f"{session.describe()['name']} on {describe_device(session.device)}, {session.dtype}")
    rows: list[dict[str, Any]] = []
    head_maps = {}
    with show_progress() as progress:
        task = progress.add_task("warming up", total=len(prompts))
        for row, head_map in answer_prompts(session, prompts):
            rows.append(row)
            head_maps[row["task"]] = head_map
            progress.update(task, advance=1, description=f"answered: {row['task']}")
    record = build_demo_record(session, rows, head_maps, started)
    console.print(make_table(rows))
    console.print(summarise(rows))
    write_file(report, render_report(record))
    console.print(f"Report: {report}")
    write_json(json, record, console)
    if loses_answers(rows):
        console.print("Routed heads answered fewer prompts right than the base model.", style="red")
        raise typer.Exit(1)


def make_table(rows: list[dict[str, Any]]) -> "Table":
    """The rows of a demo's record for the terminal; each cost as dense → elastic."""
    from rich.table import Table

    from ..viz.units import format_count, format_decimal, format_ratio, format_verdict

    table = Table("Task", box=None, header_style="bold", pad_edge=False)
    for heading in ("Tokens", "Dense", "Elastic", "MSR", "ESR", "Prefill s", "KV MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        seconds = (format_decimal(row[key], 1) for key in ("prefill_seconds_dense", "prefill_seconds"))
        mebibytes = (format_decimal(row[key] / 2**20, 1) for key in ("kv_bytes_dense", "kv_bytes"))
        table.add_row(
            row["task"],
            format_count(row["prompt_tokens"]),
            format_verdict(row["correct_dense"]),
            format_verdict(row["correct"]),
            format_ratio(row["msr"]),
            format_ratio(row["esr_prefill"]),
            " → ".join(seconds),
            " → ".join(mebibytes),
        )
    return table


def summarise(rows: list[dict[str, Any]]) -> str:
    """The benefit in one line."""
    from ..viz.summary import summarise_demo
    from ..viz.units import format_decimal, format_percent

    total = summarise_demo(rows)
    return (
        f"{total.num_right} of {total.num_rows} right (dense {total.num_right_dense}), "
        f"KV cache {format_percent(total.kv_saved_ratio)} smaller, "
        f"prefill {format_decimal(total.prefill_speed_up, 2)}x as fast."
    )
