"""`elastic-attn convert`: checkpoints and masks of other projects become adapters."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, open_console, show_progress, write_json


class Pattern(StrEnum):
    """A pattern that a model is trained with."""

    moba = "moba"
    infllm = "infllm"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Elastic, Flux, PruLong, MoBA or InfLLM-V2 checkpoint (folder or hub id), or a DuoAttention table.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder of the adapter.")],
    base: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="Stock model: tell whether q, k and v differ from it.")
    ] = None,
    msr: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of sparse heads, for static masks alone.")
    ] = None,
    pattern: Annotated[
        Pattern | None, typer.Option(help="What all heads were trained to read, where a checkpoint does not say it.")
    ] = None,
    json: Json = None,
) -> None:
    """Turn routers or a static mask of another project into an adapter."""
    import torch

    from ..evaluation.session import describe_device, measure_peak_bytes
    from ..models.convert import convert_checkpoint
    from ..records import build_record

    started, console = time.perf_counter(), open_console()
    with show_progress() as progress:
        progress.add_task(f"converting {source}", total=None)
        named = None if pattern is None else pattern.value
        facts = convert_checkpoint(source, destination, base=base, msr=msr, pattern=named)
    what = "a static mask" if facts["msr"] is not None else f"{facts['granularity']} routers"
    console.print(f"{facts['kind']}: {what} of {facts['layers']} layers written to {destination}")
    if compared := facts["projections"]:
        console.print(
            f"{compared['different']} of {compared['compared']} projections differ from {base}, by up to "
            f"{compared['largest']:.3g}"
        )
    for note in facts["notes"]:
        console.print(note)
    device = torch.device("cpu")
    record = build_record(
        "convert",
        config={"source": facts["source"], "is_compared": base is not None, "msr": msr, "pattern": named},
        model=facts["base_model"],
        data=facts["source"],
        device=describe_device(device),
        seed=None,
        n=facts["layers"],
        metrics={"rows": [{key: facts[key] for key in ("source", "kind", "granularity", "layers", "msr")}], **facts},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(device),
    )
    write_json(json, record, console)
