"""`elastic-attn run`: a question over a text file."""

import time
from typing import Annotated, Any

import typer

from .options import (
    Backend,
    Budget,
    Decode,
    DecodeOption,
    Device,
    DtypeOption,
    Json,
    Model,
    PromptFile,
    Routers,
    open_console,
    open_model,
    show_progress,
    write_json,
)


def run(
    prompt_file: PromptFile,
    question: Annotated[str, typer.Option(help="What to answer from the file.")],
    model: Model = "smollm2",
    routers: Routers = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model as well.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    budget: Budget = 0.0,
    decode: DecodeOption = Decode.sparse,
    backend: Backend = "auto",
    device: Device = None,
    dtype: DtypeOption = None,
    json: Json = None,
) -> None:
    """Answer a question over a text file, and say what was skipped."""
    from ..evaluation.documents import check_length, check_question, encode_question, read_document
    from ..evaluation.question import answer_question, build_question_record
    from ..kernels.backends import choose_backend

    started, console = time.perf_counter(), open_console()
    document = read_document(prompt_file)
    check_question(question)
    choose_backend(backend)
    session = open_model(
        model, routers=routers, device=device, dtype=dtype, decode=decode, backend=backend, budget=budget
    )
    prompt_ids = encode_question(session.tokenizer, document, question)
    check_length(session, len(prompt_ids), max_new_tokens)
    rows = []
    with show_progress() as progress:
        task = progress.add_task(f"reading {len(prompt_ids):,} tokens", total=1 + compare)
        for row in answer_question(session, prompt_ids, max_new_tokens=max_new_tokens, compare=compare):
            rows.append(row)
            progress.update(task, advance=1)
    for row in rows:
        print_answer(console, row)
    write_json(json, build_question_record(session, rows, question, prompt_file, started), console)


def print_answer(console: Any, row: dict[str, Any]) -> None:
    """One answer and its cost."""
    from rich.text import Text

    from ..viz.units import format_bytes, format_count, format_ratio, format_seconds

    console.print(Text(row["way"], style="bold"))
    console.print(Text(row["answer"] or "(nothing)"))
    facts = [
        f"{format_count(row['prompt_tokens'])} tokens",
        f"prefill {format_seconds(row['prefill_seconds'])}",
        f"{format_count(row['new_tokens'])} new tokens in {format_seconds(row['decode_seconds'])}",
        f"KV cache {format_bytes(row['kv_bytes'])}",
    ]
    if row["way"] == "elastic":
        facts += [
            f"dense {format_bytes(row['kv_bytes_dense'])}",
            f"MSR {format_ratio(row['msr'])}",
            f"ESR prefill {format_ratio(row['esr_prefill'])}, decode {format_ratio(row['esr_decode'])}",
        ]
        if not row["routed"]:
            facts.append("too short to be routed: all heads full")
    console.print(Text(" · ".join(facts), style="bright_black"))
