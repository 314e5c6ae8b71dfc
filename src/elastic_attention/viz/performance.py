"""Speed on a GPU as pictures: kernels beside their peers, and a whole model, dense beside elastic.

Panels whose rows are not in the record are left out.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .style import INK, PALETTE, QUIET, figure_style, save_figure
from .units import list_rows, to_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Record = Mapping[str, Any]
Panel = tuple[str, str, Callable[["Axes", Record], None]]
"""Name of its rows, the keys that a row of theirs needs, and what draws them."""

OWN = ("hopper", "triton", "paged", "elastic", "fused", "scoring")
BLUES = (PALETTE[0], PALETTE[5], "#0B4F7D", "#7FB2D9", "#3E6FA3", "#A9CCE3")
PEERS = (PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[6], QUIET, "#7A5C2E")
MARKS = "os^Dv<>p"


def save_kernel_speed(record: Record, path: str | os.PathLike[str]) -> None:
    """Draw a record of `benchmarks/gpu_kernels.py` into `path` (.png or .svg).

    Raises:
        ElasticAttentionError: the record has no rows to draw, or the figure cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    panels: list[Panel] = [
        ("rows", "kernel tokens teraflops", _draw_prefill_rates),
        ("rows", "kernel tokens msr speedup visited_fraction", _draw_prefill_speedups),
        ("decode", "kernel tokens batch terabytes_per_second", _draw_decode),
        ("blended", "kernel tokens batch dense_ratio", _draw_training),
        ("xattention", "kernel tokens density dense_ratio", _draw_xattention),
        ("router", "kernel batch milliseconds", _draw_router),
    ]
    save_figure(_draw_panels(record, panels, "Kernels beside their peers"), path)


def save_model_speed(record: Record, path: str | os.PathLike[str]) -> None:
    """Draw a record of `benchmarks/gpu_model.py` into `path` (.png or .svg): the model with most rows.

    Raises:
        ElasticAttentionError: the record has no rows to draw, or the figure cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    counts = Counter(row.get("model") for name in ("rows", "decode") for row in list_rows(record, name))
    model = max(counts, key=lambda name: counts[name], default=None)
    part = {
        name: sorted(
            (row for row in list_rows(record, name) if row.get("model") == model),
            key=lambda row: (row.get("kernel") == "elastic", row.get("msr") or 0.0),
        )
        for name in ("rows", "decode")
    }
    part["pairs"] = [row for row in part["rows"] if row.get("kernel") == "elastic" and row.get("pair") != "fa-ssa"]
    part["rows"] = [row for row in part["rows"] if row.get("pair") in (None, "fa-ssa")]
    panels: list[Panel] = [
        ("rows", "kernel tokens seconds", _draw_model_prefill),
        ("rows", "kernel tokens msr speedup bound_seconds", _draw_model_speedups),
        ("decode", "kernel tokens batch tokens_per_second", _draw_model_decode),
        ("decode", "kernel tokens batch msr speedup", _draw_model_decode_speedups),
        ("pairs", "pair tokens msr speedup", _draw_model_pairs),
        ("rows", "kernel tokens msr kv_ratio", _draw_model_memory),
    ]
    save_figure(_draw_panels({"metrics": part}, panels, f"{model}, dense and elastic"), path)


def save_speed(record: Record, path: str | os.PathLike[str]) -> None:
    """Draw a record of either GPU benchmark.

    Raises:
        ElasticAttentionError, BackendUnavailable: as `save_kernel_speed`.
    """
    save = save_model_speed if "gpu_model" in str(record.get("command")) else save_kernel_speed
    save(record, path)


def _draw_panels(record: Record, panels: Sequence[Panel], title: str) -> "Figure":
    chosen = [draw for name, keys, draw in panels if _has_rows(record, name, keys)]
    if not chosen:
        raise ElasticAttentionError("The record has no rows of speed; pass a record of benchmarks/gpu_*.py.")
    columns = min(2, len(chosen))
    lines = -(-len(chosen) // columns)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2 * columns, 4.0 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, draw in zip(axes, chosen, strict=False):
            draw(axis, record)
            if axis.get_yscale() == "linear":
                axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7.5)
        for axis in axes[len(chosen) :]:
            axis.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _has_rows(record: Record, name: str, keys: str) -> bool:
    """Whether a row under `name` has all keys; records of other commands have other rows there."""
    return any(all(row.get(key) is not None for key in keys.split()) for row in list_rows(record, name))


def _draw_prefill_rates(axis: "Axes", record: Record) -> None:
    rows = _pick_main(list_rows(record))
    axis.set_title("Prefill, computed blocks, MSR 0.5")
    chosen = [row for row in rows if row.get("is_dense") or row.get("msr") == 0.5]
    _draw_lines(axis, chosen, "tokens", "teraflops", "kernel")
    _scale_tokens(axis, chosen)
    axis.set_ylabel("TFLOP/s")


def _draw_prefill_speedups(axis: "Axes", record: Record) -> None:
    rows = [row for row in _pick_main(list_rows(record)) if not row.get("is_dense")]
    longest = max((row["tokens"] for row in rows), default=0)
    chosen = [row for row in rows if row["tokens"] == longest and to_number(row.get("speedup"))]
    axis.set_title(f"Prefill of {_name_tokens(longest)} over the best dense")
    _draw_lines(axis, chosen, "msr", "speedup", "kernel")
    ideal = {row["msr"]: 1 / row["visited_fraction"] for row in chosen if row["msr"] < 1}
    axis.plot(sorted(ideal), [ideal[msr] for msr in sorted(ideal)], color=QUIET, linestyle=":", label="pairs skipped")
    axis.set_xlabel("model sparsity ratio (MSR)")
    axis.set_ylabel("speed-up")
    _scale_log(axis)


def _draw_decode(axis: "Axes", record: Record) -> None:
    rows = list_rows(record, "decode")
    axis.set_title("Decode over ragged caches, MSR 0.5")
    chosen = [row for row in rows if row.get("msr") == 0.5]
    cells = sorted({(row["tokens"], row["batch"]) for row in chosen})
    _draw_bars(axis, chosen, cells, "terabytes_per_second")
    for row in list_rows(record, "ceilings"):
        if row.get("name") == "read":
            axis.axhline(row["terabytes_per_second"], color=QUIET, linestyle=":", label="read-only rate")
    axis.set_ylabel("TB/s of the bytes needed")


def _draw_training(axis: "Axes", record: Record) -> None:
    rows = [row for row in list_rows(record, "blended") if row.get("phase") == "forward"]
    axis.set_title("Training forward, both paths")
    cells = sorted({(row["tokens"], row["batch"]) for row in rows})
    _draw_bars(axis, rows, cells, "dense_ratio")
    axis.axhline(1, color=QUIET, linestyle=":")
    axis.set_ylabel("time / best dense forward")


def _draw_xattention(axis: "Axes", record: Record) -> None:
    rows = [row for row in list_rows(record, "xattention") if row.get("density") is not None]
    longest = max((row["tokens"] for row in rows), default=0)
    axis.set_title(f"XAttention of {_name_tokens(longest)}, all heads")
    _draw_lines(axis, [row for row in rows if row["tokens"] == longest], "density", "dense_ratio", "kernel")
    axis.set_xlabel("share of blocks kept")
    axis.set_ylabel("time / best dense attention")


def _draw_router(axis: "Axes", record: Record) -> None:
    axis.set_title("Router of one layer")
    micro = [{**row, "micro": row["milliseconds"] * 1e3} for row in list_rows(record, "router")]
    _draw_lines(axis, micro, "batch", "micro", "kernel")
    axis.set_xlabel("batch")
    axis.set_ylabel("µs")


def _draw_model_prefill(axis: "Axes", record: Record) -> None:
    rows = list_rows(record)
    axis.set_title("Prefill")
    named = [row | {"line": _name_run(row)} for row in rows]
    _draw_lines(axis, named, "tokens", "seconds", "line")
    _scale_tokens(axis, named)
    _scale_log(axis)
    axis.set_ylabel("seconds")


def _draw_model_speedups(axis: "Axes", record: Record) -> None:
    rows = [row for row in list_rows(record) if row.get("kernel") == "elastic" and to_number(row.get("speedup"))]
    axis.set_title("Prefill over dense (dotted: Amdahl's bound)")
    for index, tokens in enumerate(sorted({row["tokens"] for row in rows})):
        chosen = sorted((row for row in rows if row["tokens"] == tokens), key=lambda row: row["msr"])
        places, colour = [row["msr"] for row in chosen], PALETTE[index % len(PALETTE)]
        label = _name_tokens(tokens)
        axis.plot(places, [row["speedup"] for row in chosen], color=colour, marker=MARKS[index % 8], label=label)
        bounds = [row["dense_seconds"] / row["bound_seconds"] for row in chosen]
        axis.plot(places, bounds, color=colour, linestyle=":", linewidth=1.2)
    axis.set_xlabel("model sparsity ratio (MSR)")
    axis.set_ylabel("speed-up")


def _draw_model_memory(axis: "Axes", record: Record) -> None:
    rows = [row for row in list_rows(record) if row.get("kernel") == "elastic"]
    axis.set_title("Keys and values after prefill")
    named = [row | {"line": _name_tokens(row["tokens"])} for row in sorted(rows, key=lambda row: row["tokens"])]
    _draw_lines(axis, named, "msr", "kv_ratio", "line")
    axis.set_xlabel("model sparsity ratio (MSR)")
    axis.set_ylabel("share of the dense cache")


def _draw_model_decode(axis: "Axes", record: Record) -> None:
    rows = [row | {"kernel": _name_run(row)} for row in list_rows(record, "decode")]
    axis.set_title("Decode")
    cells = sorted({(row["tokens"], row["batch"]) for row in rows})
    _draw_bars(axis, rows, cells, "tokens_per_second")
    axis.set_ylabel("tokens per second")


def _draw_model_decode_speedups(axis: "Axes", record: Record) -> None:
    rows = [row for row in list_rows(record, "decode") if row.get("kernel") == "elastic"]
    axis.set_title("Decode over dense")
    named = [row | {"line": f"{_name_tokens(row['tokens'])}, B {row['batch']}"} for row in rows]
    _draw_lines(axis, sorted(named, key=lambda row: (row["tokens"], row["batch"])), "msr", "speedup", "line")
    axis.set_xlabel("model sparsity ratio (MSR)")
    axis.set_ylabel("speed-up")


def _draw_model_pairs(axis: "Axes", record: Record) -> None:
    rows = [row | {"msr": round(row["msr"], 2)} for row in list_rows(record, "pairs")]
    # The length and MSR that most patterns have.
    counts = Counter((row["tokens"], row["msr"]) for row in rows)
    tokens, msr = max(counts, key=lambda cell: counts[cell])
    chosen = [row for row in rows if (row["tokens"], row["msr"]) == (tokens, msr) and to_number(row.get("speedup"))]
    axis.set_title(f"Other patterns, prefill of {_name_tokens(tokens)} over dense")
    labels = [f"{row['pair'].upper()}\n" + (f"{row['density']:.0%}" if row.get("density") else "") for row in chosen]
    axis.bar(range(len(chosen)), [row["speedup"] for row in chosen], 0.6, color=BLUES[0])
    axis.set_xticks(range(len(chosen)), labels, fontsize=7.5)
    axis.grid(False, axis="x")
    axis.set_ylabel(f"speed-up at MSR {msr:.2f}")


def _draw_lines(axis: "Axes", rows: Sequence[Row], across: str, up: str, by: str) -> None:
    """One line a value of `by`, in the order of the rows; ours in blue."""
    names = list(dict.fromkeys(row[by] for row in rows))
    colours = _pick_colours(names)
    for index, name in enumerate(names):
        points = sorted(
            (row[across], row[up]) for row in rows if row[by] == name and to_number(row.get(up)) is not None
        )
        if points:
            places, values = zip(*points, strict=True)
            axis.plot(places, values, color=colours[name], marker=MARKS[index % len(MARKS)], markersize=5, label=name)


def _draw_bars(axis: "Axes", rows: Sequence[Row], cells: Sequence[tuple[int, int]], key: str) -> None:
    """Groups of bars, one group a (tokens, batch), one bar a kernel."""
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    colours, width = _pick_colours(names), 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        found = {(row["tokens"], row["batch"]): to_number(row.get(key)) for row in rows if row["kernel"] == name}
        places = [i for i, cell in enumerate(cells) if found.get(cell) is not None]
        axis.bar(
            [i + (index + 0.5) * width - 0.4 for i in places],
            [found[cells[i]] or 0.0 for i in places],
            width,
            color=colours[name],
            label=name,
        )
    axis.set_xticks(range(len(cells)), [f"{_name_tokens(tokens)}\nB {batch}" for tokens, batch in cells])
    axis.tick_params(axis="x", colors=INK)
    axis.set_xlim(-0.6, len(cells) - 0.4)
    axis.grid(False, axis="x")


def _pick_colours(names: Sequence[str]) -> dict[str, str]:
    """Blues for ours, other colours for peers."""
    own = [name for name in names if re.split(r"[ ,]", name)[0] in OWN]
    others = [name for name in names if name not in own]
    colours = {name: BLUES[index % len(BLUES)] for index, name in enumerate(own)}
    return colours | {name: PEERS[index % len(PEERS)] for index, name in enumerate(others)}


def _pick_main(rows: Sequence[Row]) -> list[Row]:
    """Rows of one sequence with the heads of the first row."""
    keys = ("heads", "kv_heads", "head_dim")
    main = next((tuple(row.get(key) for key in keys) for row in rows if row.get("batch") == 1), None)
    return [row for row in rows if row.get("batch") == 1 and tuple(row.get(key) for key in keys) == main]


def _scale_tokens(axis: "Axes", rows: Sequence[Row]) -> None:
    axis.set_xscale("log", base=2)
    tokens = sorted({row["tokens"] for row in rows})
    axis.set_xticks(tokens, [_name_tokens(count) for count in tokens])
    axis.set_xlabel("tokens")


def _scale_log(axis: "Axes") -> None:
    """A logarithmic scale with plain numbers, since the figures show dollar signs as they are."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _name_tokens(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


def _name_run(row: Row) -> str:
    is_own = row.get("kernel") == "elastic"
    return f"elastic, MSR {row['msr']:.2f}" if is_own else f"dense, {row.get('kernel')}"
