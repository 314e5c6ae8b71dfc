"""`elastic-attn eval`: what routing costs in quality, on held-out samples."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import Budget, Device, DtypeOption, Json, Model, Routers, open_console, open_model, write_json


def evaluate(
    model: Model = "smollm2",
    routers: Routers = None,
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples of each kind.")] = 12,
    length: Annotated[
        list[int] | None, typer.Option(min=512, help="Prompt tokens; repeat it. Default: 1024 and 2048.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Kind of task; repeat it. Default: all of them.")] = None,
    corpora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Made by `make data`. Default: texts in the package.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Scores so far; run again to go on.")] = Path(
        "runs/eval"
    ),
    budget: Budget = 0.0,
    device: Device = None,
    dtype: DtypeOption = None,
    json: Json = None,
) -> None:
    """Compare routed heads with dense, all-sparse and random ones, kind by kind."""
    import dataclasses

    from ..errors import ElasticAttentionError
    from ..evaluation.comparison import compare_methods
    from ..evaluation.quality import SuiteConfig
    from ..evaluation.session import describe_device, measure_peak_bytes
    from ..records import build_record
    from ..tasks import KINDS

    if unknown := sorted(set(kind or ()) - set(KINDS)):
        raise ElasticAttentionError(f"--kind {', '.join(unknown)} is unknown; choose from {', '.join(KINDS)}.")
    started, console = time.perf_counter(), open_console()
    suite = SuiteConfig(
        kinds=tuple(kind or KINDS),
        lengths=tuple(length or (1024, 2048)),
        samples=samples,
        corpora=None if corpora is None else str(corpora),
        tokens_per_forward=8192,
    )
    session = open_model(model, routers=routers, device=device, dtype=dtype, budget=budget)
    if max(suite.lengths) > session.context:
        raise ElasticAttentionError(
            f"--length {max(suite.lengths)} is past the {session.context} tokens that {model} takes; ask for less."
        )
    try:
        identity = session.describe() | {"routers": routers, "budget": budget}
        metrics = compare_methods(session.handle, session.tokenizer, suite, output, identity=identity)
    except ValueError as error:
        raise ElasticAttentionError(str(error)) from error
    console.print(_build_table(metrics))
    record = build_record(
        "eval",
        config=dataclasses.asdict(suite),
        model=session.describe(),
        data=suite.corpora or "texts shipped with the package",
        device=describe_device(session.device),
        seed=suite.seed,
        n=samples * len(suite.kinds),
        metrics=metrics,
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(session.device),
    )
    write_json(json, record, console)


def _build_table(metrics: dict) -> object:
    from rich.table import Table

    table = Table(title="Mean over the kinds that the dense model masters", title_justify="left")
    for name in ("method", "MSR", "score", "95%", "of dense"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in metrics["rows"]:
        interval = f"{row['score_low']:.2f}–{row['score_high']:.2f}"
        table.add_row(
            row["method"], f"{row['msr']:.2f}", f"{row['score']:.3f}", interval, f"{row['relative_score']:.3f}"
        )
    return table
