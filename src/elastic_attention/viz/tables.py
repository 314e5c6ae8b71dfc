"""Markdown tables made from records, and their places in a Markdown file.

A table named `demo` stands between `<!-- table:demo -->` and `<!-- /table:demo -->`. One function renders one table.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..records import read_record, write_file
from .markdown import MarkdownTable, render_caption
from .summary import average, summarise_demo
from .units import (
    MISSING,
    format_bytes,
    format_count,
    format_decimal,
    format_interval,
    format_percent,
    format_ratio,
    format_seconds,
    format_text,
    format_verdict,
    list_rows,
    to_number,
)

Record = Mapping[str, Any]

# A kind that the dense model does not master cannot show what sparsity loses.
MASTERED_SCORE = 0.5

_BLOCK = re.compile(r"(<!--\s*table:(?P<name>[\w-]+)\s*-->)(?P<body>.*?)(<!--\s*/table:(?P=name)\s*-->)", re.DOTALL)
_MARKER = re.compile(r"<!--\s*/?table:([\w-]+)\s*-->")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSource:
    """Where a table comes from: a record's file name in the results folder, and the function that renders it."""

    record: str
    render: Callable[[Record], str]


def update_tables(readme: Path, results: Path, check: bool) -> list[str]:
    """Bring every marked table of a Markdown file up to date with the records.

    Args:
        readme: the Markdown file; it is replaced atomically, and left alone where nothing changed.
        results: folder of the records.
        check: only compare; write nothing.

    Returns:
        Names of the tables that were out of date, in order; empty when the file agrees with the records.

    Raises:
        ElasticAttentionError: an unknown table name, a marker without its partner, or a record that cannot be read.
    """
    try:
        text = Path(readme).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ElasticAttentionError(f"Cannot read {readme}: {error}. Check the path.") from error
    _check_markers(readme, text)
    stale: list[str] = []

    def replace(block: re.Match[str]) -> str:
        table = render_table(block["name"], Path(results))
        if block["body"].strip() != table and block["name"] not in stale:
            stale.append(block["name"])
        return f"{block[1]}\n{table}\n{block[4]}"

    updated = _BLOCK.sub(replace, text)
    if updated != text and not check:
        write_file(readme, updated)
    return stale


def render_table(name: str, results: Path) -> str:
    """Render the table `name` from its record in the folder `results`.

    Raises:
        ElasticAttentionError: the name is unknown, or its record cannot be read.
    """
    source = TABLES.get(name)
    if source is None:
        raise ElasticAttentionError(f"Unknown table {name!r}. Known tables: {', '.join(TABLES)}.")
    record = read_record(results / source.record)
    return f"{source.render(record)}\n\n{render_caption(record)}"


def render_demo(record: Record) -> str:
    """The demo: each task with its answer's verdict and its cost, and the totals in the last row."""
    rows = list_rows(record)
    table = MarkdownTable("Task", "Tokens", "Dense", "Elastic", "MSR", "ESR prefill", "ESR decode",
                          "Prefill dense", "Prefill elastic", "KV dense", "KV elastic")  # fmt: skip
    for row in rows:
        table.add(
            format_text(row.get("task")), format_count(row.get("prompt_tokens")), format_verdict(row.get("correct_dense")),
            format_verdict(row.get("correct")), format_ratio(row.get("msr")), format_ratio(row.get("esr_prefill")),
            format_ratio(row.get("esr_decode")), format_seconds(row.get("prefill_seconds_dense")),
            format_seconds(row.get("prefill_seconds")), format_bytes(row.get("kv_bytes_dense")),
            format_bytes(row.get("kv_bytes")),
        )  # fmt: skip
    total = summarise_demo(rows)
    dense_right = f"{total.num_right_dense}/{total.num_judged_dense}" if total.num_judged_dense else MISSING
    table.add(
        "all", "", dense_right, f"{total.num_right}/{total.num_rows}", format_ratio(total.mean_msr),
        format_ratio(average(row.get("esr_prefill") for row in rows)),
        format_ratio(average(row.get("esr_decode") for row in rows)), format_seconds(total.prefill_seconds_dense),
        format_seconds(total.prefill_seconds), format_bytes(total.kv_bytes_dense), format_bytes(total.kv_bytes),
    )  # fmt: skip
    return table.render()


def render_quality(record: Record) -> str:
    """Quality by kind and method; kinds that the dense model does not master stand in a table of their own."""
    rows = list_rows(record, "by_kind")
    mastered = [row for row in rows if (to_number(row.get("dense")) or 0.0) >= MASTERED_SCORE]
    others = [row for row in rows if row not in mastered]
    parts = [_render_kinds(mastered, has_mean=True)]
    if others:
        parts += [
            f"Outside the mean, since the dense model stays below {MASTERED_SCORE:.2f}:",
            _render_kinds(others, has_mean=False),
        ]
    return "\n\n".join(parts)


def render_frontier(record: Record) -> str:
    """Every measured point of the frontier with its 95% intervals."""
    table = MarkdownTable("Method", "Decode", "Target", "MSR", "ESR prefill", "Score", "Relative to dense")
    for row in list_rows(record):
        score = (
            f"{format_decimal(row.get('score'), 3)} {format_interval(row.get('score_low'), row.get('score_high'), 3)}"
        )
        relative = (
            f"{format_decimal(row.get('relative_score'), 3)} "
            f"{format_interval(row.get('relative_low'), row.get('relative_high'), 3)}"
        )
        table.add(
            format_text(row.get("method")).replace("_", " "), format_text(row.get("decode")), format_ratio(row.get("target")),
            format_ratio(row.get("msr")), format_ratio(row.get("esr_prefill")), score, relative,
        )  # fmt: skip
    return table.render()


def render_bench_cpu(record: Record) -> str:
    """Kernel times; `cost / ideal` is the time over visited_fraction x the dense time, 1 where skipping is free."""
    table = MarkdownTable("Tokens", "Heads", "Type", "MSR", "ms", "SDPA ms", "Visited", "Cost / ideal")
    for row in list_rows(record):
        milliseconds, dense, visited = (
            to_number(row.get(key)) for key in ("milliseconds", "dense_milliseconds", "visited_fraction")
        )
        ratio = _divide(milliseconds, visited * dense if visited and dense else None)
        table.add(
            format_count(row.get("tokens")), format_text(row.get("heads")), format_text(row.get("dtype")),
            format_ratio(row.get("msr")), format_decimal(milliseconds, 1), format_decimal(dense, 1),
            format_percent(visited, 1), format_ratio(ratio),
        )  # fmt: skip
    return table.render()


def render_overhead(record: Record) -> str:
    """What attaching costs: prefill with all heads full over the base model's, and the router's share of it."""
    table = MarkdownTable("Tokens", "Base prefill ms", "All heads full ms", "Overhead", "Router ms", "Router share")
    for row in list_rows(record):
        dense, full, router = (
            to_number(row.get(key)) for key in ("dense_milliseconds", "full_milliseconds", "router_milliseconds")
        )
        table.add(
            format_count(row.get("tokens")), format_decimal(dense, 1), format_decimal(full, 1),
            format_percent(_divide(full - dense if full is not None and dense else None, dense), 1), format_decimal(router, 2),
            format_percent(_divide(router, dense), 1),
        )  # fmt: skip
    return table.render()


TABLES = {
    "demo": TableSource(record="demo.json", render=render_demo),
    "quality": TableSource(record="quality.json", render=render_quality),
    "frontier": TableSource(record="quality.json", render=render_frontier),
    "bench_cpu": TableSource(record="bench_cpu.json", render=render_bench_cpu),
    "overhead": TableSource(record="overhead.json", render=render_overhead),
}


def _render_kinds(rows: list[dict[str, Any]], *, has_mean: bool) -> str:
    methods = ("dense", "all_sparse", "routed", "static", "random")
    table = MarkdownTable("Kind", "Category", "n", "Dense", "All sparse", "Routed", "Static", "Random", "MSR")
    for row in rows:
        table.add(
            format_text(row.get("kind")), format_text(row.get("category")), format_count(row.get("n")),
            *(format_ratio(row.get(method)) for method in methods), format_ratio(row.get("msr")),
        )  # fmt: skip
    if has_mean and rows:
        means = {key: average(row.get(key) for row in rows) for key in (*methods, "msr")}
        num_samples = sum(to_number(row.get("n")) or 0 for row in rows)
        table.add("mean of kinds", "", format_count(num_samples), *map(format_ratio, means.values()))
        relative = [_divide(means[method], means["dense"]) for method in methods]
        table.add("mean / dense", "", "", *(format_decimal(ratio, 3) for ratio in relative), "")
    return table.render()


def _divide(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _check_markers(readme: Path, text: str) -> None:
    """Refuse unknown names, and markers that are not an opening directly followed by its own closing."""
    markers = [match[0] for match in _MARKER.finditer(text)]
    for name in _MARKER.findall(text):
        if name not in TABLES:
            raise ElasticAttentionError(
                f"{readme} asks for the unknown table {name!r}. Known tables: {', '.join(TABLES)}."
            )
    pairs = [(block[1], block[4]) for block in _BLOCK.finditer(text)]
    if markers != [marker for pair in pairs for marker in pair]:
        raise ElasticAttentionError(
            f"{readme}: each <!-- table:NAME --> needs its <!-- /table:NAME --> before the next one; found {', '.join(markers)}."
        )
