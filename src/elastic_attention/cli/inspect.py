"""`elastic-attn inspect`: which heads a prompt leaves full, as a picture."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Budget,
    Device,
    DtypeOption,
    Json,
    Model,
    PromptFile,
    Routers,
    check_target,
    open_console,
    open_model,
    show_progress,
    write_json,
)


def inspect(
    prompt_file: PromptFile,
    question: Annotated[str, typer.Option(help="A question behind the text; routes depend on it.")] = "",
    model: Model = "smollm2",
    routers: Routers = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=check_target, help="Also draw into this .png or .svg.")
    ] = None,
    budget: Budget = 0.0,
    device: Device = None,
    dtype: DtypeOption = None,
    json: Json = None,
) -> None:
    """Show which KV heads of which layers stay full for a prompt."""
    from ..evaluation.documents import check_length, encode_question, read_document
    from ..evaluation.inspection import build_inspection_record, inspect_prompt
    from ..viz import HeadMapPicture, save_head_maps
    from ..viz.style import check_ending
    from ..viz.units import format_count, format_percent, format_ratio

    started, console = time.perf_counter(), open_console()
    document = read_document(prompt_file)
    if picture is not None:
        check_ending(picture)
    session = open_model(model, routers=routers, device=device, dtype=dtype, budget=budget)
    prompt_ids = encode_question(session.tokenizer, document, question)
    check_length(session, len(prompt_ids), 0)
    with show_progress() as progress:
        progress.add_task(f"reading {len(prompt_ids):,} tokens", total=None)
        row, head_map = inspect_prompt(session, prompt_ids)
    console.print(HeadMapPicture(head_map=head_map, title=prompt_file.name))
    if not row["routed"]:
        console.print("The prompt is too short to be routed: all heads are full.")
    console.print(
        f"{format_count(row['prompt_tokens'])} tokens, MSR {format_ratio(row['msr'])}, "
        f"prefill skips {format_percent(row['esr_prefill'])} of the query-key pairs."
    )
    if picture is not None:
        save_head_maps({prompt_file.name: head_map}, picture)
        console.print(f"Picture: {picture}")
    write_json(json, build_inspection_record(session, row, head_map, prompt_file, started), console)
