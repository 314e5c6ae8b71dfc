"""`elastic-attn eval`: what routing costs in quality and saves in reading, on the tasks of a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Backend,
    Budget,
    Device,
    DtypeOption,
    Json,
    Model,
    Routers,
    check_folder,
    open_console,
    show_progress,
    write_json,
)

if TYPE_CHECKING:
    from rich.console import Console

METHODS = "dense,routed,routed/full"
MAX_REASONS = 5


def evaluate(
    model: Model = "smollm2",
    routers: Routers = None,
    suite: Annotated[
        str, typer.Option(help="mixture (the project's own kinds), ruler, longbench, gsm8k, …")
    ] = "mixture",
    tasks: Annotated[
        list[str] | None, typer.Option(help="Tasks of the suite, with commas or repeated. Default: all of them.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help="Tokens of prompt and answer, with commas or repeated. Default: the suite's."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Of each task and length. Default: all there are.")] = None,
    methods: Annotated[
        list[str],
        typer.Option(
            help="dense, all_sparse, routed, routed/full (reads all keys while decoding), random@0.7, static=DIR, "
            "fa_xa=DIR, xattention, moba, …; an unknown word lists all."
        ),
    ] = [METHODS],  # noqa: B006 - typer copies it
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The suite's official files. Default: named stand-ins.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Setting of the suite, such as prefix=user.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER", callback=check_folder, help="Every answer as it comes; run again to go on."),
    ] = Path("runs/eval"),
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 1,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Rows times tokens of a batch. Default: 131072 on a GPU, one row on a CPU."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make samples ahead of the model.")] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="This part of the run; the last part to finish writes the record.")
    ] = None,
    budget: Budget = 0.0,
    backend: Backend = "auto",
    device: Device = None,
    dtype: DtypeOption = None,
    json: Json = None,
) -> None:
    """Ask a model the tasks of a suite, dense and routed, and score its answers.

    Exit code 1: no question could be asked.
    """
    from ..errors import ElasticAttentionError
    from ..evaluation.plan import count_steps, parse_method
    from ..evaluation.session import open_base
    from ..evaluation.sharding import choose_shard_device, find_shard
    from ..evaluation.suite_run import Routing, evaluate_suite, make_plan
    from ..tasks.lengths import check_least_lengths
    from ..tasks.suite import check_tasks, open_suite
    from ..viz.score_tables import build_score_tables

    console, part = open_console(), find_shard(shard)
    try:
        wanted = tuple(int(text) for text in _split(lengths))
    except ValueError as error:
        raise ElasticAttentionError(f"--lengths {','.join(_split(lengths))} must be whole numbers.") from error
    # All that can be wrong is looked at before the model is loaded.
    chosen = open_suite(suite, data=data, **dict(map(split_option, option or ())))
    asked, answering = check_tasks(chosen, _split(tasks)), tuple(map(parse_method, _split(methods)))
    check_least_lengths(chosen, asked, wanted)
    base = open_base(model, device=choose_shard_device(device), dtype=None if dtype is None else dtype.value)
    plan = make_plan(
        base,
        chosen,
        tasks=asked,
        lengths=wanted,
        samples=samples,
        methods=answering,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    with show_progress() as progress:
        bar = progress.add_task(f"{suite}: making samples", total=count_steps(plan, chosen, part))
        record = evaluate_suite(
            base,
            chosen,
            plan,
            output,
            routing=Routing(routers=routers, backend=backend, budget=budget),
            shard=part,
            workers=workers,
            advance=lambda label: progress.update(bar, advance=1, description=label),
        )
    if record is None:
        console.print(f"Part {part.index} of {part.count} is done; the last part of {output} brings the record.")
        return
    metrics = record["metrics"]
    if metrics["rows"]:
        console.print(*build_score_tables(metrics))
    _print_notes(metrics, console)
    write_json(json, record, console)
    if not metrics["counts"]["asked"]:
        raise typer.Exit(1)


def _split(texts: list[str] | None) -> list[str]:
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def split_option(text: str) -> tuple[str, str]:
    """Name and value of an option of a suite, both as text: `open_suite` knows which values are numbers.

    Raises:
        ElasticAttentionError: it is not written as KEY=VALUE.
    """
    from ..errors import ElasticAttentionError

    key, equals, value = text.partition("=")
    if not equals:
        raise ElasticAttentionError(f"--option {text!r} must look like KEY=VALUE.")
    return key, value


def _print_notes(metrics: dict[str, Any], console: "Console") -> None:
    """Everything that a reader of the table has to know."""
    counts = metrics["counts"]
    for task, name in metrics["substitutes"].items():
        console.print(f"* {task}: {name}")
    console.print(
        f"{counts['asked']:,} answers: {counts['cut']:,} cut at their longest, {counts['empty']:,} empty; "
        f"{counts['skipped']:,} samples could not be asked"
    )
    for entry in metrics["skipped"][:MAX_REASONS]:
        console.print(f"  {entry['task']} {entry['length']:,} #{entry['index']}: {entry['reason']}")
    if not metrics["has_chat_template"]:
        console.print("The model has no chat template: all prompts were plain text.")
