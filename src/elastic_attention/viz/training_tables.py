"""Tables of training speed, from records of the training benchmark."""

import operator
from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import (
    format_bytes,
    format_count,
    format_percent,
    format_ratio,
    format_tenths,
    format_text,
    list_rows,
)

Record = Mapping[str, Any]
Row = dict[str, Any]

_WAYS = {"ours": "ours", "reference": "two attentions, keys repeated"}
_LOADS = {"mixed": "samples of ⅛ to 1", "single": "one sample"}
_CELL = ("way", "memory", "whole_layers", "is_compiled", "fast_gradients", "gpus", "sequence")
_AGAIN = {"layers": "all", "attention": "all but attention", "all": "nothing"}


def render_training(record: Record) -> str:
    """Throughput of each cell: packs, GPUs, tokens a second, peak memory, and shares of what the chip can do."""
    columns = (
        Column(key="way", heading="Attention", format=format_text),
        Column(key="load", heading="Pack", format=format_text),
        Column(key="again", heading="Runs again", format=format_text),
        Column(key="gpus", heading="GPUs", format=format_count),
        Column(key="sequence", heading="Sharing a pack", format=format_count),
        Column(key="tokens_per_second_per_gpu", heading="Tokens/s a GPU", format=format_count),
        Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
        Column(key="share_of_peak", heading="Of the bf16 peak", format=format_percent),
        Column(key="share_of_matmul", heading="Of a matmul", format=format_percent),
        Column(key="share_of_peak_with_recomputation", heading="With what runs again", format=format_percent),
        Column(key="scaling_efficiency", heading="Scaling from 1 GPU", format=format_ratio),
    )
    order = operator.itemgetter("load", "gpus", "sequence", "way", "fast_gradients", "whole_layers")
    rows = sorted(list_rows(record), key=order)
    return render_markdown(columns, [_name(row) for row in rows])


def render_training_hours(record: Record) -> str:
    """Hours for the paper's run at the measured rate of each cell, by packs of a step; the paper's own in the end."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in list_rows(record, "hours"):
        cell = tuple(row[key] for key in _CELL)
        packs = row["packs_per_step"]
        rows.setdefault(cell, _name(row)).update(
            {f"gpu_hours_{packs}": row["gpu_hours"], f"hours_{packs}": row["hours_on_8_gpus_at_this_rate"]}
        )
    ordered = sorted(rows.values(), key=lambda row: row["gpu_hours_24"])
    if paper := record["metrics"].get("paper"):
        hours = {"hours_24": paper["hours"], "gpu_hours_24": paper["hours"] * paper["gpus"]}
        ordered.append({"way": f"the paper, {paper['gpu']}", "again": "", "gpus": paper["gpus"], **hours})
    columns = (
        Column(key="way", heading="Attention", format=format_text),
        Column(key="again", heading="Runs again", format=format_text),
        Column(key="gpus", heading="GPUs measured", format=format_count),
        Column(key="sequence", heading="Sharing a pack", format=format_count),
        Column(key="gpu_hours_24", heading="GPU hours, 24 packs a step", format=format_tenths),
        Column(key="hours_24", heading="On 8 GPUs", format=format_tenths),
        Column(key="gpu_hours_48", heading="GPU hours, 48 packs a step", format=format_tenths),
        Column(key="hours_48", heading="On 8 GPUs", format=format_tenths),
    )
    return render_markdown(columns, ordered)


def _name(row: Row) -> Row:
    way, again = _WAYS[row["way"]], _AGAIN[row["memory"]]
    if row["way"] == "ours" and not row["is_compiled"]:
        way += ", unfused"
    if row["fast_gradients"]:
        way += ", fast gradients"
    if row["whole_layers"] and row["whole_layers"] == row["layers"]:
        again = _AGAIN["all"]
    elif row["whole_layers"]:
        again += f", {row['layers'] - row['whole_layers']} of {row['layers']} layers"
    named = {"way": way, "again": again}
    return row | named | {"load": f"{_LOADS[row['load']]} × {row['tokens'] // 1024}K"}
