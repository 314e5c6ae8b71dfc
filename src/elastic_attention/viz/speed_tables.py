"""Tables of speed on a GPU, from records of the GPU benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import format_bytes, format_count, format_decimal, format_percent, format_ratio, format_text, list_rows

Record = Mapping[str, Any]
Row = dict[str, Any]

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)


def render_gpu_prefill(record: Record) -> str:
    """Prefill kernels of one sequence: TFLOP/s on computed blocks at each MSR, and the speed-up at the sparsest mix."""
    groups: dict[tuple[Any, ...], Row] = {}
    for row in list_rows(record):
        if row.get("batch") == 1:
            key = (row["tokens"], row["heads"], row["kv_heads"], row["head_dim"], row["kernel"])
            entry = groups.setdefault(key, {"tokens": key[0], "kernel": key[4]})
            entry["heads"] = f"{row['heads']} / {row['kv_heads']} × {row['head_dim']}"
            entry[f"rate {row['msr']}"] = row["teraflops"]
            entry[f"speedup {row['msr']}"] = row.get("speedup")
    columns = (
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="heads", heading="Heads", format=format_text),
        Column(key="kernel", heading="Kernel", format=format_text),
        *(Column(key=f"rate {ratio}", heading=f"TFLOP/s, MSR {ratio:g}", format=_format_whole) for ratio in RATIOS),
        *(
            Column(key=f"speedup {ratio}", heading=f"× dense, MSR {ratio:g}", format=format_ratio)
            for ratio in (0.5, 0.75)
        ),
    )
    return render_markdown(columns, [groups[key] for key in sorted(groups, key=_order_heads)])


def render_gpu_decode(record: Record) -> str:
    """Decode attention over ragged caches: microseconds, and the rate at which the needed bytes are read."""
    columns = (
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="batch", heading="Batch", format=format_count),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="kernel", heading="Kernel", format=format_text),
        Column(key="microseconds", heading="µs", format=_format_tenths),
        Column(key="terabytes_per_second", heading="TB/s", format=format_ratio),
        Column(key="speedup", heading="× FA3 flat", format=format_ratio),
    )
    rows = [row | {"microseconds": row["milliseconds"] * 1e3} for row in list_rows(record, "decode")]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["tokens"], row["batch"], row["msr"])))


def render_model_prefill(record: Record) -> str:
    """Prefill of a whole model: seconds, speed-up over the best dense kernel, share of Amdahl's bound, memory."""
    columns = (
        Column(key="model", heading="Model", format=format_text),
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="run", heading="Attention", format=format_text),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="seconds", heading="Seconds", format=format_ratio),
        Column(key="speedup", heading="× dense", format=format_ratio),
        Column(key="bound_share", heading="Of the bound", format=format_percent),
        Column(key="kv_ratio", heading="KV / dense", format=format_ratio),
        Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
    )
    rows = [row | {"run": _name_run(row)} for row in list_rows(record)]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["model"], row["tokens"])))


def render_model_decode(record: Record) -> str:
    """Decode of a whole model as a captured graph: tokens a second, and the share of the bytes bound."""
    columns = (
        Column(key="model", heading="Model", format=format_text),
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="batch", heading="Batch", format=format_count),
        Column(key="run", heading="Attention", format=format_text),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="tokens_per_second", heading="Tokens / s", format=_format_tenths),
        Column(key="speedup", heading="× dense", format=format_ratio),
        Column(key="bound_share", heading="Of the bound", format=format_percent),
        Column(key="kv_bytes", heading="KV", format=format_bytes),
    )
    rows = [row | {"run": _name_run(row)} for row in list_rows(record, "decode")]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["model"], row["tokens"], row["batch"])))


def _order_heads(key: Sequence[Any]) -> tuple[Any, ...]:
    """More heads and wider ones first, then by length."""
    tokens, heads, kv_heads, head_dim, _ = key
    return (-head_dim, -heads, -kv_heads, tokens)


def _name_run(row: Mapping[str, Any]) -> str:
    kernel = format_text(row.get("kernel"))
    return {"elastic": "elastic", "router": "elastic, with routers"}.get(kernel, f"dense, {kernel}")


def _format_whole(value: object) -> str:
    return format_decimal(value, 0)


def _format_tenths(value: object) -> str:
    return format_decimal(value, 1)
