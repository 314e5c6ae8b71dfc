"""`elastic-attn bench serve`: a server under load, with routed heads and with all heads full."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Engine, Json, Model, Routers, open_console, show_progress, write_json

if TYPE_CHECKING:
    from rich.table import Table


def bench_serve(
    url: Annotated[
        str | None, typer.Option(help="A running server, http://host:port. Default: start one for the measurement.")
    ] = None,
    model: Model = "smollm2",
    routers: Routers = None,
    engine: Annotated[Engine, typer.Option(help="Of a server that is started.")] = Engine.auto,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="Requests at a time; repeat it.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each measurement.")] = 12,
    tokens: Annotated[int, typer.Option(min=512, help="Length of a prompt, in words and signs.")] = 2048,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
    json: Json = None,
) -> None:
    """Load a server with long prompts of mixed kinds; the same engine answers with routed heads and with full ones."""
    from ..records import build_record
    from ..serving.launching import open_server
    from ..serving.load import KINDS, WAYS, ServerClient, draw_prompts, measure_load
    from ..tasks import load_corpora

    started, console = time.perf_counter(), open_console()
    levels, corpora = concurrency or [1, 4], load_corpora()
    flags = ["--model", model, "--engine", engine.value, "--max-requests", str(2 * max(levels))]
    flags += ["--routers", routers] if routers is not None else []
    rows: list[dict[str, Any]] = []
    with open_server(flags) if url is None else _given(url) as address:
        client = ServerClient(address)
        with show_progress() as progress:
            task = progress.add_task("warming up", total=len(levels) * len(WAYS) + 1)
            for way in WAYS:
                client.ask(draw_prompts(corpora, count=1, tokens=tokens, seed=seed)[0], new_tokens=2, way=way)
            for number, level in enumerate(levels):
                for way in list(WAYS)[:: -1 if number % 2 else 1]:
                    progress.update(task, advance=1, description=f"{way}, {level} at a time")
                    # Never a prompt twice: the second time its blocks would be cached.
                    drawn = draw_prompts(corpora, count=requests, tokens=tokens, seed=seed + 1 + len(rows))
                    rows.append(measure_load(client, drawn, concurrency=level, new_tokens=new_tokens, way=way))
    console.print(_make_table(rows))
    record = build_record(
        "bench serve",
        config={"engine": engine.value, "tokens": tokens, "new_tokens": new_tokens, "kinds": list(KINDS), "url": url},
        model={"name": client.model, "routers": routers},
        data="texts shipped with the package",
        device="server",
        seed=seed,
        n=sum(row["n"] for row in rows),
        metrics={"rows": rows},
        seconds=time.perf_counter() - started,
        bytes=None,
    )
    write_json(json, record, console)


def _given(url: str) -> Any:
    import contextlib

    return contextlib.nullcontext(url)


def _make_table(rows: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    from ..viz.units import format_count, format_decimal, format_ratio

    table = Table("Way", box=None, header_style="bold", pad_edge=False)
    for heading in ("At a time", "Tokens", "MSR", "TTFT ms", "p95", "TPOT ms", "Tokens / s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["way"],
            str(row["concurrency"]),
            format_count(round(row["prompt_tokens"])),
            "–" if row["msr"] is None else format_ratio(row["msr"]),
            format_decimal(row["ttft_median_ms"], 0),
            format_decimal(row["ttft_p95_ms"], 0),
            "–" if row["tpot_median_ms"] is None else format_decimal(row["tpot_median_ms"], 1),
            format_decimal(row["new_tokens_per_second"], 1),
        )
    return table
