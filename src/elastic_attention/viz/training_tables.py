"""Tables of training speed, from records of the training benchmark."""

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import format_bytes, format_count, format_decimal, format_percent, format_ratio, format_text, list_rows

Record = Mapping[str, Any]
Row = dict[str, Any]

_LOADS = {"mixed": "samples of ⅛ to 1", "single": "one sample"}
_AGAIN = {"layers": "layers", "attention": "layers but for attention", "all": "nothing"}


def render_training(record: Record) -> str:
    """Throughput of each cell: packs, GPUs, tokens a second, peak memory, and shares of what the chip can do."""
    columns = (
        Column(key="cell", heading="Way", format=format_text),
        Column(key="load_name", heading="Pack", format=format_text),
        Column(key="gpus", heading="GPUs", format=format_count),
        Column(key="sequence", heading="Sharing a pack", format=format_count),
        Column(key="tokens_per_second_per_gpu", heading="Tokens/s a GPU", format=format_count),
        Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
        Column(key="share_of_peak", heading="Of the bf16 peak", format=format_percent),
        Column(key="share_of_matmul", heading="Of a matmul", format=format_percent),
        Column(key="share_of_peak_with_recomputation", heading="With what runs again", format=format_percent),
        Column(key="scaling_efficiency", heading="Scaling from 1 GPU", format=format_ratio),
    )
    rows = [
        row | {"cell": _name_cell(row), "load_name": f"{_LOADS[row['load']]} × {row['tokens'] // 1024}K"}
        for row in list_rows(record)
    ]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["load"], row["gpus"], row["sequence"])))


def render_training_hours(record: Record) -> str:
    """Hours for the paper's run at the measured rate, beside the paper's."""
    columns = (
        Column(key="cell", heading="Way", format=format_text),
        Column(key="gpus", heading="GPUs measured", format=format_count),
        Column(key="sequence", heading="Sharing a pack", format=format_count),
        Column(key="packs_per_step", heading="Packs a step", format=format_count),
        Column(key="gpu_hours", heading="GPU hours", format=_format_tenths),
        Column(key="hours_on_8_gpus_at_this_rate", heading="Hours on 8 GPUs", format=_format_tenths),
        Column(key="paper_gpu_hours", heading="GPU hours in the paper (A800)", format=format_count),
    )
    rows = [row | {"cell": _name_cell(row)} for row in list_rows(record, "hours")]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["packs_per_step"], row["gpu_hours"])))


def _name_cell(row: Row) -> str:
    way = "two attentions, keys repeated" if row["way"] == "reference" else "ours"
    fused = ", fused by torch.compile" if row["is_compiled"] else ""
    return f"{way}; runs again: {_AGAIN[row['memory']]}{fused}"


def _format_tenths(value: object) -> str:
    return format_decimal(value, 1)
