"""Tables of speed on a GPU, from records of the GPU benchmarks; the short ones show the cell with most rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import (
    format_bytes,
    format_count,
    format_decimal,
    format_percent,
    format_ratio,
    format_seconds,
    format_tenths,
    format_text,
    format_thousandths,
    list_rows,
)

Record = Mapping[str, Any]
Row = dict[str, Any]

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ATTENTION = ("model", "tokens", "kernel", "pair", "density")
_DECODE_WAYS = {"plain": "launched one by one", "replayed": "one CUDA graph"}


def render_gpu_prefill(record: Record) -> str:
    """Prefill kernels: TFLOP/s on computed blocks at each MSR, and the speed-up over the best dense kernel."""
    return _render_rates(list_rows(record), has_shapes=True)


def render_gpu_prefill_short(record: Record) -> str:
    """The same for the heads and the length that most kernels ran."""
    return _render_rates(_pick_fullest(list_rows(record), ("heads", "head_dim", "batch", "tokens")), has_shapes=False)


def _render_rates(rows: Sequence[Row], *, has_shapes: bool) -> str:
    groups: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (-row["head_dim"], -row["heads"], row["kv_heads"], row["batch"], row["tokens"], row["kernel"])
        entry = groups.setdefault(key, {name: row[name] for name in ("tokens", "batch", "kernel")})
        entry["heads"] = f"{row['heads']} / {row['kv_heads']} × {row['head_dim']}"
        entry[f"rate {row['msr']}"] = row["teraflops"]
        entry[f"speedup {row['msr']}"] = row.get("speedup")
    shapes = (
        Column(key="heads", heading="Heads", format=format_text),
        Column(key="batch", heading="Batch", format=format_count),
        Column(key="tokens", heading="Tokens", format=format_count),
    )
    columns = (
        *(shapes if has_shapes else shapes[2:]),
        Column(key="kernel", heading="Kernel", format=format_text),
        *(Column(key=f"rate {ratio}", heading=f"TFLOP/s, MSR {ratio:g}", format=format_count) for ratio in RATIOS),
        *(
            Column(key=f"speedup {ratio}", heading=f"× dense, MSR {ratio:g}", format=format_ratio)
            for ratio in (0.5, 0.75)
        ),
    )
    return render_markdown(columns, [groups[key] for key in sorted(groups, key=lambda key: key[:-1])])


def render_gpu_decode(record: Record) -> str:
    """Decode attention over ragged caches: microseconds, and the rate at which the needed bytes are read."""
    columns = (
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="batch", heading="Batch", format=format_count),
        Column(key="msr", heading="MSR", format=format_ratio),
        Column(key="kernel", heading="Kernel", format=format_text),
        Column(key="microseconds", heading="µs", format=format_tenths),
        Column(key="terabytes_per_second", heading="TB/s", format=format_ratio),
        Column(key="read_share", heading="Of reading alone", format=format_percent),
        Column(key="speedup", heading="× FA3 flat", format=format_ratio),
    )
    read = next((c["terabytes_per_second"] for c in list_rows(record, "ceilings") if c.get("name") == "read"), None)
    rows = [
        row
        | {"microseconds": row["milliseconds"] * 1e3}
        | {"read_share": row["terabytes_per_second"] / read if read else None}
        for row in list_rows(record, "decode")
    ]
    return render_markdown(columns, sorted(rows, key=lambda row: (row["tokens"], row["batch"], row["msr"])))


def render_gpu_others(record: Record) -> str:
    """Launches, the router, XAttention and training: each number beside what it is measured against."""
    columns = (
        Column(key="what", heading="What", format=format_text),
        Column(key="kernel", heading="Kernel", format=format_text),
        Column(key="value", heading="Measured", format=format_text),
        Column(key="dense_ratio", heading="/ best dense", format=format_thousandths),
    )
    rows: list[Row] = []
    for row in list_rows(record, "launches"):
        rows.append(row | {"what": "launches of one call, full and sparse heads", "value": str(row["launches"])})
    for row in list_rows(record, "router"):
        value = f"{format_decimal(row['milliseconds'] * 1e3, 1)} µs"
        rows.append(row | {"what": f"router of a layer, batch {row['batch']}", "value": value})
    for row in list_rows(record, "xattention"):
        kept = "by threshold" if row.get("density") is None else f"{row['density']:.0%} of the blocks"
        is_dense = row["kernel"] in _list_dense(record)
        what = "dense attention" if is_dense else f"XAttention, {kept}"
        rows.append(row | {"what": f"{what}, {_name_tokens(row)}", "value": _format_milliseconds(row)})
    for row in list_rows(record, "blended"):
        phase = "forward and backward" if row["phase"] == "both" else "forward"
        paths = "dense" if row["kernel"] in _list_dense(record) else "both paths"
        what = f"training, {paths}, {phase}, {_name_tokens(row)}"
        rows.append(row | {"what": what, "value": _format_milliseconds(row)})
    return render_markdown(columns, rows)


def render_model_prefill(record: Record) -> str:
    """Prefill of a whole model: seconds, speed-up over the best dense kernel, share of Amdahl's bound, memory."""
    rows = sorted(list_rows(record), key=lambda row: (row["model"], row["tokens"], *_order_run(row)))
    return render_markdown((*_MODEL_COLUMNS, *_PREFILL_COLUMNS), [_name_run(row) for row in rows])


def render_model_prefill_short(record: Record) -> str:
    """The same for the model and the length that were measured with most attentions, whatever the MSR."""
    attentions = {tuple(row.get(key) for key in _ATTENTION): row for row in list_rows(record)}
    shapes = {(row["model"], row["tokens"]) for row in _pick_fullest([*attentions.values()], ("model", "tokens"))}
    rows = sorted((row for row in list_rows(record) if (row["model"], row["tokens"]) in shapes), key=_order_run)
    return render_markdown((*_MODEL_COLUMNS[1:], *_PREFILL_COLUMNS), [_name_run(row) for row in rows])


def render_model_decode(record: Record) -> str:
    """Decode of a whole model as a captured graph: tokens a second, and the share of the bytes bound."""
    rows = sorted(list_rows(record, "decode"), key=_order_cell)
    return render_markdown((*_MODEL_COLUMNS, *_DECODE_COLUMNS), [_name_run(row) for row in rows])


def render_model_decode_short(record: Record) -> str:
    """The same for the model with most cells: dense, and the ratio that is nearest to 0.7."""
    rows = sorted(_pick_fullest(list_rows(record, "decode"), ("model",)), key=_order_cell)
    nearest = min((row["msr"] for row in rows if row["msr"] > 0), key=lambda msr: abs(msr - 0.7), default=None)
    chosen = [_name_run(row) for row in rows if row["kernel"] != "elastic" or row["msr"] == nearest]
    return render_markdown((*_MODEL_COLUMNS[1:], *_DECODE_COLUMNS), chosen)


def render_model_batches(record: Record) -> str:
    """The most sequences of one length that fit the GPU, and how fast they decode."""
    columns = (
        *_MODEL_COLUMNS,
        Column(key="largest_batch", heading="Largest batch", format=format_count),
        Column(key="tokens_per_second", heading="Tokens / s", format=format_tenths),
        Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
    )
    return render_markdown(columns, [_name_run(row) for row in list_rows(record, "batches")])


def render_absent(record: Record) -> str:
    """What a record of a GPU benchmark lacks: what could not run and why, and what there was no time for."""
    columns = (
        Column(key="section", heading="Section", format=format_text),
        Column(key="name", heading="What", format=format_text),
        Column(key="cell", heading="Where", format=format_text),
        Column(key="reason", heading="Why", format=format_text),
    )
    rows = []
    for row in [*list_rows(record, "missing"), *list_rows(record, "skipped")]:
        known = ("section", "name", "kernel", "reason", "run")
        cell = {key: value for key, value in row.items() if key not in known and value is not None}
        rows.append(
            {
                "section": row.get("section"),
                "name": row.get("name") or row.get("kernel"),
                "cell": cell or None,
                "reason": row.get("reason", "no time"),
            }
        )
    return render_markdown(columns, rows) if rows else "Nothing of what the runs were asked for."


def render_route_agreement(record: Record) -> str:
    """Routes of several devices and number types against the float32 routes of the CPU."""
    columns = (
        Column(key="device", heading="Device", format=format_text),
        Column(key="dtype", heading="Type", format=format_text),
        Column(key="decisions", heading="Decisions", format=format_count),
        Column(key="agreement", heading="Agree", format=_format_hundredths),
        Column(key="agreement_given_routes", heading="Agree, given routes", format=_format_hundredths),
        Column(key="clear_ratio", heading="Clear", format=_format_hundredths),
        Column(key="differing_clear", heading="Clear ones that differ", format=format_count),
        Column(key="largest_move", heading="Largest move of a margin", format=format_thousandths),
        Column(key="smallest_margin", heading="Smallest margin", format=format_thousandths),
    )
    return render_markdown(columns, list_rows(record))


def render_vllm_engine(record: Record) -> str:
    """vLLM with the plugin beside vLLM alone: time to the first token, and decoding."""
    columns = (
        Column(key="cell", heading="Tokens × requests", format=format_text),
        Column(key="ttft stock", heading="TTFT, vLLM", format=format_seconds),
        Column(key="ttft elastic", heading="TTFT, elastic", format=format_seconds),
        Column(key="ttft_speedup", heading="×", format=format_ratio),
        Column(key="rate stock", heading="Tokens / s, vLLM", format=format_tenths),
        Column(key="rate elastic", heading="Tokens / s, elastic", format=format_tenths),
        Column(key="decode_speedup", heading="×", format=format_ratio),
    )
    cells: dict[tuple[int, int, int], Row] = {}
    for row in list_rows(record):
        ranks = row.get("ranks", 1)
        cell = cells.setdefault((ranks, row["tokens"], row["requests"]), {})
        cell["cell"] = f"{format_count(row['tokens'])} × {row['requests']}" + f", {ranks} GPUs" * (ranks > 1)
        cell |= {f"ttft {row['way']}": row["ttft_seconds"], f"rate {row['way']}": row["decoded_per_second"]}
        if row["way"] == "elastic":
            cell |= {key: row.get(key) for key in ("ttft_speedup", "decode_speedup")}
    return render_markdown(columns, [cells[key] for key in sorted(cells)])


def render_small_models(record: Record) -> str:
    """A model whose kernels are shorter than what the host does: a decode step, and training by the size of packs."""
    columns = (
        Column(key="what", heading="What", format=format_text),
        Column(key="way", heading="How", format=format_text),
        Column(key="value", heading="Measured", format=format_text),
    )
    rows: list[Row] = []
    for row in list_rows(record, "decoding"):
        what = f"a token, {row['prompts']} × {_name_tokens(row)}"
        value = f"{format_decimal(row['milliseconds_per_token'], 1)} ms"
        rows.append({"what": what, "way": _DECODE_WAYS[row["way"]], "value": value})
    for row in list_rows(record, "training"):
        way, rate = f"packs of {format_count(row['pack_tokens'])} tokens", format_count(round(row["tokens_per_second"]))
        rows.append({"what": "training", "way": way, "value": f"{rate} tokens / s"})
    return render_markdown(columns, rows)


def _pick_fullest(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The rows that share the commonest values of `keys`; of equally common ones the longest."""
    counts = Counter(tuple(row[key] for key in keys) for row in rows)
    best = max(counts, key=lambda cell: (counts[cell], cell[-1]), default=None)
    return [row for row in rows if tuple(row[key] for key in keys) == best]


def _list_dense(record: Record) -> set[str]:
    return {row["kernel"] for row in list_rows(record) if row.get("is_dense")} | {"fa3", "sdpa flash", "sdpa cudnn"}


def _order_cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["model"], row["tokens"], row["batch"], *_order_run(row))


def _order_run(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Dense runs, FA-SSA by ratio, the other pairs by density."""
    pair = row.get("pair")
    return (pair is not None, pair != "fa-ssa", pair or "", row.get("density") or 0.0, row["msr"])


def _name_run(row: Mapping[str, Any]) -> Row:
    """The row with its attention in words."""
    kernel, pair, density = (row.get(key) for key in ("kernel", "pair", "density"))
    if kernel != "elastic":
        return {**row, "attention": f"dense, {kernel}"}
    return {**row, "attention": (pair or "elastic").upper() + (f", {density:.0%} of the blocks" if density else "")}


def _name_tokens(row: Mapping[str, Any]) -> str:
    return f"{format_count(row['tokens'])} tokens"


def _format_milliseconds(row: Mapping[str, Any]) -> str:
    return f"{format_decimal(row['milliseconds'], 2)} ms"


def _format_hundredths(value: object) -> str:
    return format_percent(value, 2)


_MODEL_COLUMNS = (
    Column(key="model", heading="Model", format=format_text),
    Column(key="tokens", heading="Tokens", format=format_count),
    Column(key="attention", heading="Attention", format=format_text),
    Column(key="msr", heading="MSR", format=format_ratio),
)
_PREFILL_COLUMNS = (
    Column(key="seconds", heading="Seconds", format=format_ratio),
    Column(key="speedup", heading="× dense", format=format_ratio),
    Column(key="bound_share", heading="Of the bound", format=format_percent),
    Column(key="kv_ratio", heading="KV / dense", format=format_ratio),
    Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
)
_DECODE_COLUMNS = (
    Column(key="batch", heading="Batch", format=format_count),
    Column(key="tokens_per_second", heading="Tokens / s", format=format_tenths),
    Column(key="speedup", heading="× dense", format=format_ratio),
    Column(key="bound_share", heading="Of the bound", format=format_percent),
    Column(key="kv_bytes", heading="KV", format=format_bytes),
)
