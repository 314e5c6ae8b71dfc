"""Tables of recipes side by side, from records of `benchmarks/recipe_quality.py`."""

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import (
    format_bytes,
    format_count,
    format_estimate,
    format_ratio,
    format_text,
    list_rows,
)

Record = Mapping[str, Any]
Row = dict[str, Any]


def render_recipes(record: Record) -> str:
    """A row a recipe: sparsity, and its share of the dense score on all, sensitive and robust kinds."""
    columns = (
        Column(key="recipe", heading="Recipe", format=format_text),
        Column(key="pair", heading="Pair", format=format_text),
        Column(key="n", heading="n", format=format_count),
        Column(key="msr_all", heading="MSR", format=format_ratio),
        Column(key="msr_sensitive", heading="MSR, sensitive", format=format_ratio),
        Column(key="msr_robust", heading="MSR, robust", format=format_ratio),
        Column(key="esr_prefill", heading="ESR prefill", format=format_ratio),
        Column(key="all", heading="Of dense", format=format_text),
        Column(key="sensitive", heading="Of dense, sensitive", format=format_text),
        Column(key="robust", heading="Of dense, robust", format=format_text),
    )
    runs = {row["label"]: row for row in list_rows(record, "trainings")}
    rows = [
        row
        | _name(runs.get(row["label"], {"recipe": row["label"], "pair": None}))
        | {kinds: _write_share(row, kinds) for kinds in ("all", "sensitive", "robust")}
        for row in list_rows(record)
    ]
    return render_markdown(columns, rows)


def render_recipe_gains(record: Record) -> str:
    """A row a router and mask: what the router scores above the mask, with 95% intervals."""
    columns = (
        Column(key="router", heading="Routers", format=format_text),
        Column(key="mask", heading="One mask", format=format_text),
        *(Column(key=kinds, heading=f"Gain on {kinds} kinds", format=format_text) for kinds in ("sensitive", "robust")),
    )
    names = {row["label"]: _name(row)["recipe"] for row in list_rows(record, "trainings")}
    rows: dict[tuple[str, str], Row] = {}
    for gain in list_rows(record, "gains"):
        pair = names.get(gain["router"], gain["router"]), names.get(gain["mask"], gain["mask"])
        row = rows.setdefault(pair, dict(zip(("router", "mask"), pair, strict=True)))
        row[gain["kinds"]] = format_estimate(gain["value"], gain["low"], gain["high"])
    return render_markdown(columns, list(rows.values()))


def render_recipe_runs(record: Record) -> str:
    """A row a recipe: what its training took, and how far the held-out sparsity of routers is from their intervals.

    A record that joins trainings of several commits names that of each.
    """
    runs = list_rows(record, "trainings")
    columns = (
        Column(key="recipe", heading="Recipe", format=format_text),
        Column(key="steps", heading="Steps", format=format_count),
        Column(key="tokens", heading="Tokens", format=format_count),
        Column(key="rate", heading="Tokens/s", format=format_count),
        Column(key="peak_bytes", heading="Peak memory", format=format_bytes),
        Column(key="furthest_outside", heading="Furthest outside of its interval", format=format_ratio),
        *([Column(key="commit", heading="Commit", format=format_text)] if any("commit" in run for run in runs) else []),
    )
    rows = [
        row
        | _name(row)
        | {"commit": str(row.get("commit", ""))[:9] or None}
        | {"rate": row["tokens"] / row["seconds"]}
        | {"furthest_outside": row["furthest_outside"] if _is_router(row) else None}  # a mask is one for all categories
        for row in runs
    ]
    return render_markdown(columns, rows)


def render_recipe_intervals(record: Record) -> str:
    """A row a category, a column a router: the sparsity of held-out samples at inference, beside the interval."""
    runs = [row for row in list_rows(record, "trainings") if _is_router(row)]
    columns = (
        Column(key="category", heading="Category", format=format_text),
        Column(key="interval", heading="Interval", format=format_text),
        Column(key="samples", heading="Held out", format=format_count),
        *(Column(key=row["label"], heading=_name(row)["recipe"], format=format_ratio) for row in runs),
    )
    rows: dict[str, Row] = {}
    for run in runs:
        for category, found in run["categories"].items():
            row = rows.setdefault(category, {"category": category, "samples": found["samples"]})
            row["interval"] = f"{format_ratio(found.get('low'))} to {format_ratio(found.get('high'))}"
            row[run["label"]] = found["msr"]
    return render_markdown(columns, list(rows.values()))


def _is_router(run: Mapping[str, Any]) -> bool:
    return str(run["source"]).endswith("_router")


def _name(run: Mapping[str, Any]) -> Row:
    return {"recipe": str(run["recipe"]).removesuffix(".toml"), "pair": run["pair"]}


def _write_share(row: Mapping[str, Any], kinds: str) -> str:
    return format_estimate(*(row.get(f"relative_{kinds}_{key}") for key in ("value", "low", "high")))
