"""The tables of the README: one function turns one record into one Markdown table."""

import re
from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .summary import average, summarise_demo
from .units import (
    MISSING,
    describe_scores,
    format_bytes,
    format_count,
    format_percent,
    format_ratio,
    format_seconds,
    format_tenths,
    format_text,
    format_thousandths,
    format_verdict,
    list_rows,
    to_number,
)

Record = Mapping[str, Any]
Row = dict[str, Any]

# A kind that the dense model does not master cannot show what sparsity loses.
MASTERED_SCORE = 0.5

METHODS = ("dense", "all_sparse", "routed", "fa_xa", "static", "prulong", "duo_attention", "retrieval_heads", "random")


def render_demo(record: Record) -> str:
    """The demo: each task with its verdicts and its cost, and the totals in the last row."""
    columns = (
        Column(key="task", heading="Task", format=format_text),
        Column(key="prompt_tokens", heading="Tokens", format=_format_count_or_blank),
        Column(key="correct_dense", heading="Dense", format=_format_verdict_or_text),
        Column(key="correct", heading="Elastic", format=_format_verdict_or_text),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="esr_prefill", heading="ESR prefill", format=format_ratio),
        Column(key="esr_decode", heading="ESR decode", format=format_ratio),
        Column(key="prefill_seconds_dense", heading="Prefill dense", format=format_seconds),
        Column(key="prefill_seconds", heading="Prefill elastic", format=format_seconds),
        Column(key="kv_bytes_dense", heading="KV dense", format=format_bytes),
        Column(key="kv_bytes", heading="KV elastic", format=format_bytes),
    )
    rows = list_rows(record)
    total = summarise_demo(rows)
    totals: Row = {
        "task": "all",
        "prompt_tokens": "",
        "correct_dense": f"{total.num_right_dense} of {total.num_judged_dense}" if total.num_judged_dense else MISSING,
        "correct": f"{total.num_right} of {total.num_rows}",
        "msr": total.mean_msr,
        "esr_prefill": average(row.get("esr_prefill") for row in rows),
        "esr_decode": average(row.get("esr_decode") for row in rows),
        "prefill_seconds_dense": total.prefill_seconds_dense,
        "prefill_seconds": total.prefill_seconds,
        "kv_bytes_dense": total.kv_bytes_dense,
        "kv_bytes": total.kv_bytes,
    }
    return render_markdown(columns, [*rows, totals])


def render_quality(record: Record) -> str:
    """Score by kind and method; kinds that the dense model does not master stand in a table of their own."""
    rows = [_pick_methods(row) for row in list_rows(record, "by_kind")]
    asked = [name for name in METHODS if any(row[name] is not None for row in rows)]
    columns = (
        Column(key="kind", heading="Kind", format=format_text),
        Column(key="category", heading="Category", format=_format_text_or_blank),
        Column(key="n", heading="n", format=_format_count_or_blank),
        *(Column(key=name, heading=name, format=format_thousandths) for name in asked),
        Column(key="msr", heading="MSR routed", format=format_ratio),
    )
    mastered = [row for row in rows if (to_number(row["dense"]) or 0.0) >= MASTERED_SCORE]
    others = [row for row in rows if (to_number(row["dense"]) or 0.0) < MASTERED_SCORE]
    parts = [render_markdown(columns, [*mastered, *_average_kinds(mastered)])]
    if others:
        parts.append(f"Outside the mean, since the dense model stays below {MASTERED_SCORE:.2f}:")
        parts.append(render_markdown(columns, others))
    return "\n\n".join(parts)


def render_frontier(record: Record) -> str:
    """Every measured point of the frontier with its 95% intervals."""
    columns = (
        Column(key="method", heading="Method", format=format_text),
        Column(key="decode", heading="Decode", format=format_text),
        Column(key="target", heading="Target", format=format_ratio),
        Column(key="n", heading="n", format=format_count),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="esr_prefill", heading="ESR prefill", format=format_ratio),
        Column(key="score_text", heading="Score", format=format_text),
        Column(key="relative_text", heading="Relative to dense", format=format_text),
    )
    return render_markdown(columns, [describe_scores(row) for row in list_rows(record)])


def render_quality_speed(record: Record) -> str:
    """A row a method: what it keeps of the dense score, and the speed-ups that its MSR gives a large model."""
    columns = (
        Column(key="label", heading="Method", format=format_text),
        Column(key="n", heading="n", format=format_count),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="esr_prefill", heading="ESR prefill", format=format_ratio),
        Column(key="relative_text", heading="Of dense", format=format_text),
        Column(key="prefill_speedup", heading="Prefill, times as fast", format=format_ratio),
        Column(key="decode_speedup", heading="Decoding, times as fast", format=format_ratio),
    )
    return render_markdown(columns, [describe_scores(row) for row in list_rows(record)])


def render_bench_cpu(record: Record) -> str:
    """Kernel times; `cost / ideal` is the time over visited_fraction * the dense time, 1 where skipping is free."""
    columns = (
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="heads_text", heading="Heads", format=format_text),
        Column(key="dtype", heading="Type", format=format_text),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="visited_fraction", heading="Visited", format=_format_tenths_percent),
        Column(key="dense_milliseconds", heading="SDPA ms", format=format_tenths),
        Column(key="milliseconds", heading="Elastic ms", format=format_tenths),
        Column(key="ratio", heading="Cost / ideal", format=format_ratio),
    )
    rows = []
    for row in list_rows(record):
        ideal = _multiply(row.get("visited_fraction"), row.get("dense_milliseconds"))
        heads, kv_heads = format_text(row.get("heads")), row.get("kv_heads")
        rows.append(
            {
                **row,
                "heads_text": heads if kv_heads is None else f"{heads} / {format_text(kv_heads)}",
                "ratio": _divide(row.get("milliseconds"), ideal),
            }
        )
    return render_markdown(columns, rows)


def render_overhead(record: Record) -> str:
    """What attaching costs: prefill with all heads full over the base model's, and the router's share of it."""
    columns = (
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="dense_milliseconds", heading="Base ms", format=format_tenths),
        Column(key="full_milliseconds", heading="All heads full ms", format=format_tenths),
        Column(key="overhead_ratio", heading="Overhead", format=_format_tenths_percent),
        Column(key="elastic_milliseconds", heading="Routed ms", format=format_tenths),
        Column(key="router_milliseconds", heading="Router ms", format=format_tenths),
        Column(key="router_ratio", heading="Router / base", format=_format_tenths_percent),
    )
    return render_markdown(columns, list_rows(record))


def render_memory(record: Record) -> str:
    """Peak memory of one prompt, the base model's and the routed one's, each in a process of its own."""
    columns = (
        Column(key="way", heading="Model", format=format_text),
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="loaded_bytes", heading="After loading", format=format_bytes),
        Column(key="peak_bytes", heading="Peak", format=format_bytes),
    )
    return render_markdown(columns, list_rows(record, "memory"))


def _pick_methods(row: Row) -> Row:
    """The row with one score a method, from the key `routed` or `routed@0.800`; variants (`routed-cache`) stay out."""
    keys = {
        name: next((key for key in row if re.fullmatch(rf"{name}(@[\d.]+)?", key)), name) for name in (*METHODS, "msr")
    }
    picked: Row = {name: row.get(key) for name, key in keys.items()}
    picked["msr"] = row.get(f"msr {keys['routed']}", picked["msr"])
    return {"kind": row.get("kind"), "category": row.get("category"), "n": row.get("n"), **picked}


def _average_kinds(rows: list[Row]) -> list[Row]:
    """The mean row, in which every kind counts the same, and the row of the means over the dense mean."""
    if not rows:
        return []
    means = {key: average(row[key] for row in rows) for key in (*METHODS, "msr")}
    relative = {name: _divide(means[name], means["dense"]) for name in METHODS}
    num_samples = sum(to_number(row["n"]) or 0.0 for row in rows)
    return [{"kind": "mean of kinds", "n": num_samples, **means}, {"kind": "mean / dense", **relative}]


def _divide(value: object, base: object) -> float | None:
    number, divisor = to_number(value), to_number(base)
    return number / divisor if number is not None and divisor else None


def _multiply(left: object, right: object) -> float | None:
    first, second = to_number(left), to_number(right)
    return first * second if first is not None and second is not None else None


def _format_count_or_blank(value: object) -> str:
    return "" if to_number(value) is None else format_count(value)


def _format_text_or_blank(value: object) -> str:
    return "" if value is None else format_text(value)


def _format_verdict_or_text(value: object) -> str:
    return value if isinstance(value, str) else format_verdict(value)


def _format_tenths_percent(value: object) -> str:
    return format_percent(value, 1)
