"""`elastic-attn bench`: kernel times, or what attaching costs."""

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Backend,
    Device,
    DtypeOption,
    Json,
    Model,
    Routers,
    open_console,
    open_model,
    show_progress,
    write_json,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table


class What(StrEnum):
    """What to measure."""

    kernels = "kernels"
    overhead = "overhead"


def bench(
    context: typer.Context,
    what: Annotated[What, typer.Option(help="Kernel times, or what attaching costs a model.")] = What.kernels,
    device: Device = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smaller shape or shorter prompts, 3 repeats.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1024, help="Tokens. Default: 8192 for kernels, on a GPU 8K, 32K and 128K as well; 4096 for overhead."
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Interleaved repeats of a median. Default: 9.")] = None,
    backend: Backend = "auto",
    model: Model = "smollm2",
    routers: Routers = None,
    dtype: DtypeOption = None,
    json: Json = None,
) -> None:
    """Measure kernels against PyTorch's causal attention, or the cost of attaching.

    Exit code 1: a kernel differs from the float64 oracle (no times are reported) or fails, or the cache's bytes differ
    from the formula.
    """
    from ..evaluation.session import choose_device
    from ..kernels.backends import choose_backend

    if context.invoked_subcommand is not None:
        return
    choose_backend(backend)
    repeats = repeats or (3 if quick else 9)
    console = open_console()
    if what is What.kernels:
        place = choose_device(device)
        if place.type == "cuda":
            _bench_gpu_kernels(console, place, backend, tokens, repeats, quick, json)
        else:
            _bench_kernels(console, place, backend, tokens or (4096 if quick else 8192), repeats, quick, json)
    else:
        options = {"model": model, "routers": routers, "device": device, "dtype": dtype, "backend": backend}
        _bench_overhead(console, options, tokens or (1024 if quick else 4096), repeats, quick, json)


def _bench_kernels(
    console: "Console", device: "torch.device", backend: str, tokens: int, repeats: int, quick: bool, json: Any
) -> None:
    from ..evaluation.bench_cpu import DTYPES, SHAPES, build_bench_record, measure_kernels
    from ..evaluation.oracle import OracleMismatch

    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    shapes = SHAPES[:1] if quick else SHAPES
    try:
        with show_progress() as progress:
            task = progress.add_task("kernels", total=len(shapes) * len(DTYPES))
            for part in measure_kernels(tokens=tokens, repeats=repeats, device=device, backend=backend, shapes=shapes):
                rows += part
                progress.update(task, advance=1)
    except OracleMismatch as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from error
    console.print(_make_kernel_table(rows))
    write_json(json, build_bench_record(rows, shapes, device, backend, repeats, started), console)


def _make_kernel_table(rows: list[dict[str, Any]]) -> "Table":
    from ..viz.units import format_count, format_decimal, format_percent, format_ratio

    cells = [
        (
            f"({row['heads']}, {row['kv_heads']}) × {row['head_dim']}",
            format_count(row["tokens"]),
            row["dtype"],
            format_ratio(row["msr"]),
            format_decimal(row["milliseconds"], 1),
            format_decimal(row["dense_milliseconds"], 1),
            format_percent(row["visited_fraction"], 1),
            format_ratio(row["ratio"]),
        )
        for row in rows
    ]
    return _make_table("Heads", ("Tokens", "Type", "MSR", "ms", "SDPA ms", "Visited", "Cost / ideal"), cells)


def _bench_gpu_kernels(
    console: "Console", device: "torch.device", backend: str, tokens: int | None, repeats: int, quick: bool, json: Any
) -> None:
    import torch

    from ..evaluation.bench_decode import CELLS, measure_gpu_decode
    from ..evaluation.bench_gpu import LENGTHS, build_gpu_record, measure_gpu_kernels
    from ..evaluation.oracle import OracleMismatch

    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    decode: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    lengths = (tokens,) if tokens else LENGTHS[:1] if quick else LENGTHS
    cells = ((tokens, 1), (tokens, 8)) if tokens else CELLS[:1] if quick else CELLS
    try:
        with show_progress() as progress:
            task = progress.add_task("prefill", total=len(lengths) + len(cells))
            for part, failed in measure_gpu_kernels(lengths, device=device, backend=backend, repeats=repeats):
                rows, failures = rows + part, failures + failed
                progress.update(task, advance=1)
            progress.update(task, description="decode")
            for part in measure_gpu_decode(cells, device=device, repeats=repeats):
                decode += part
                progress.update(task, advance=1)
    except OracleMismatch as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from error
    except torch.OutOfMemoryError as error:
        console.print(f"The rest does not fit this GPU: {str(error).split('. ')[0]}.", style="yellow")
    console.print(_make_gpu_table(rows))
    console.print(_make_decode_table(decode))
    for row in failures:
        console.print(f"{row['tokens']:,} tokens, {row['kernel']}: {row['reason']}", style="yellow")
    record = build_gpu_record(
        {"rows": rows, "decode": decode, "missing": failures},
        device=device,
        backend=backend,
        repeats=repeats,
        started=started,
    )
    write_json(json, record, console)
    if not rows or any(not row["kernel"].startswith("sdpa") for row in failures):
        raise typer.Exit(1)


def _make_gpu_table(rows: list[dict[str, Any]]) -> "Table":
    from ..viz.units import format_count, format_decimal, format_percent, format_ratio

    cells = [
        (
            row["kernel"],
            format_count(row["tokens"]),
            format_ratio(row["msr"]),
            format_decimal(row["milliseconds"], 2),
            format_decimal(row["teraflops"], 0),
            format_percent(row["visited_fraction"], 1),
            format_ratio(row.get("speedup")),
        )
        for row in rows
    ]
    return _make_table("Prefill", ("Tokens", "MSR", "ms", "TFLOP/s", "Visited", "× best dense"), cells)


def _make_decode_table(rows: list[dict[str, Any]]) -> "Table":
    from ..viz.units import format_count, format_decimal, format_ratio

    cells = [
        (
            row["kernel"],
            format_count(row["tokens"]),
            format_count(row["batch"]),
            format_ratio(row["msr"]),
            format_decimal(row["milliseconds"] * 1e3, 1),
            format_ratio(row["terabytes_per_second"]),
            format_ratio(row["speedup"]),
        )
        for row in rows
    ]
    return _make_table("Decode", ("Tokens", "Batch", "MSR", "µs", "TB/s", "× dense"), cells)


def _make_table(first: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    table = Table(first, box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in cells:
        table.add_row(*line)
    return table


def _bench_overhead(
    console: "Console", options: dict[str, Any], tokens: int, repeats: int, quick: bool, json: Any
) -> None:
    from ..evaluation.memory import WAYS, MemoryTask, measure_memory
    from ..evaluation.overhead import build_overhead_record, measure_kv_bytes, measure_overhead
    from ..viz.units import format_bytes, format_decimal, format_percent

    started = time.perf_counter()
    session = open_model(**options)
    memory_tokens = min(tokens if quick else 2 * tokens, session.context - 8)
    with show_progress() as progress:
        task = progress.add_task("prefill", total=2 + len(WAYS))
        row = measure_overhead(session, tokens=min(tokens, session.context), repeats=repeats)
        progress.update(task, advance=1, description="bytes of the cache")
        kv_bytes = measure_kv_bytes(session, tokens=min(tokens, session.context))
        memory = []
        for way in WAYS:
            progress.update(task, advance=1, description=f"peak memory, {way}")
            memory.append(
                measure_memory(
                    MemoryTask(
                        way=way,
                        model=options["model"],
                        routers=options["routers"],
                        device=str(session.device),
                        dtype=str(session.dtype).removeprefix("torch."),
                        tokens=memory_tokens,
                        new_tokens=4,
                    )
                )
            )
    console.print(
        f"{row['tokens']:,} tokens: base {format_decimal(row['dense_milliseconds'], 0)} ms, all heads full "
        f"{format_decimal(row['full_milliseconds'], 0)} ms ({format_percent(row['overhead_ratio'], 1)} more), router "
        f"{format_decimal(row['router_milliseconds'], 1)} ms ({format_percent(row['router_ratio'], 1)} of prefill)"
    )
    console.print(
        f"KV cache {format_bytes(kv_bytes['kv_bytes'])} at MSR {format_decimal(kv_bytes['msr'], 2)}, formula "
        f"{format_bytes(kv_bytes['kv_bytes_formula'])}, dense {format_bytes(kv_bytes['kv_bytes_dense'])}"
    )
    for entry in memory:
        console.print(f"{entry['tokens']:,} tokens, {entry['way']}: peak {format_bytes(entry['peak_bytes'])}")
    write_json(json, build_overhead_record(session, row, kv_bytes, memory, repeats, started), console)
    if kv_bytes["kv_bytes"] != kv_bytes["kv_bytes_formula"]:
        console.print("The cache's bytes differ from the formula.", style="red")
        raise typer.Exit(1)
