"""One self-contained HTML page from records: totals, head maps, tables. It asks no other host for anything."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BackendUnavailable, ElasticAttentionError
from .charts import Chart
from .columns import Column, pick_columns
from .curves import Intervals, Steps
from .eval_charts import build_charts
from .eval_tables import pivot_tasks
from .head_map import CheckedHeadMap, average_head_maps, check_head_map, mean_share
from .summary import DemoSummary, summarise_demo
from .training_charts import build_training_charts
from .units import (
    format_bytes,
    format_command,
    format_commit,
    format_count,
    format_percent,
    format_ratio,
    format_seconds,
    format_text,
    list_rows,
)

TEMPLATE = "report.html.j2"
CELL = 10  # side of a head's cell in the map's own units


@dataclass(frozen=True, kw_only=True, slots=True)
class MapView:
    """A head map as the template draws it: L columns of G cells."""

    title: str
    shares: CheckedHeadMap
    msr: float | None
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TableView:
    """Rows of a record as a table that sorts; `note` stands above it."""

    heading: str
    note: str
    columns: list[Column]
    rows: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One record as the template shows it; `lead` of its tables stand before the head maps."""

    command: str
    command_line: str
    is_demo: bool
    model: str
    device: str
    created: str
    summary: DemoSummary
    maps: list[MapView]
    charts: list[Chart]
    choices: list[tuple[str, str]]
    tables: list[TableView]
    lead: int
    facts: dict[str, str]
    config: str


def render_report(
    records: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    training: Steps | None = None,
    intervals: Intervals | None = None,
) -> str:
    """Render one record, or several below each other, as one HTML page.

    Args:
        records: records as `read_record` returns them. `metrics.rows`, and any other list of rows there, becomes a
            table; `metrics.head_maps` (task to L x G shares, 1 = sparse) becomes pictures. The rows of a demo also
            give the totals on top.
        training: steps of a training log (`read_training_log`), drawn as curves below the records.
        intervals: target interval of the MSR by category, drawn behind them.

    Returns:
        The page as text. Every value from a record is escaped; scripts, styles and pictures are inline.

    Raises:
        ElasticAttentionError: there is no record, or a head map is malformed.
        BackendUnavailable: jinja2 is not installed.
    """
    sections = [_build_section(record) for record in ([records] if isinstance(records, Mapping) else records)]
    if training:
        sections.append(_build_training(training, intervals))
    if not sections:
        raise ElasticAttentionError("There is no record to report on. Pass at least one record file.")
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise BackendUnavailable(
            "The report needs jinja2, which is not installed. Install it with: pip install 'elastic-attention[demo]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("elastic_attention.viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "percent": format_percent,
        "ratio": format_ratio,
        "seconds": format_seconds,
        "share_in_words": describe_share,
        "text": format_text,
    }
    return environment.get_template(TEMPLATE).render(sections=sections, cell=CELL)


def _build_training(steps: Steps, intervals: Intervals | None) -> Section:
    """The curves of a training run; its log says nothing of model and machine."""
    return Section(
        command="train",
        command_line=format_command("train"),
        is_demo=False,
        model="",
        device="",
        created="",
        summary=summarise_demo([]),
        maps=[],
        charts=build_training_charts(steps, intervals),
        choices=[],
        tables=[],
        lead=0,
        facts={"Steps": format_count(steps[-1].get("step"))},
        config="",
    )


def _build_section(record: Mapping[str, Any]) -> Section:
    rows = list_rows(record)
    command = format_text(record.get("command"))
    package = record.get("package") or {}
    is_demo = command == "demo" and bool(rows)
    lead, others = _build_tables(record)
    if is_demo:  # whose pictures come first
        lead, others = [], [*lead, *others]
    return Section(
        command=command,
        command_line=format_command(command),
        is_demo=is_demo,
        model=format_text(record["model"]) if record.get("model") else "",
        device=format_text(record.get("device")),
        created=str(record.get("created") or "")[:16].replace("T", " "),
        summary=summarise_demo(rows),
        maps=_build_maps(record),
        charts=build_charts(record),
        choices=_list_choices(record),
        tables=[*lead, *others],
        lead=len(lead),
        facts={
            "Data": format_text(record.get("data")),
            "Samples": format_count(record.get("n")),
            "Seed": format_text(record.get("seed")),
            "Time": format_seconds(record.get("seconds")),
            "Package": f"{format_text(package.get('name'))} {format_text(package.get('version'))}",
            "Commit": format_commit(package.get("commit")),
            "Versions": format_text(record.get("versions")),
            **_list_other_metrics(record),
        },
        config=json.dumps(record.get("config"), indent=2, ensure_ascii=False, default=str),
    )


def _list_other_metrics(record: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that are neither rows nor head maps, in words."""
    metrics = record.get("metrics", {})
    names = [name for name in metrics if name != "head_maps" and not list_rows(record, name)]
    return {name.replace("_", " ").capitalize(): format_text(metrics[name]) for name in names if metrics[name]}


HEADINGS = {"rows": "Row by row", "mastered_rows": "Where dense scores .50 or more"}


def _build_tables(record: Mapping[str, Any]) -> tuple[list[TableView], list[TableView]]:
    """A table for each list of rows among the metrics; those with the results stand apart from those with the parts."""
    metrics = record.get("metrics", {})
    views = {}
    for name in metrics:
        rows = list_rows(record, name)
        # The first is the note of another table, the second says again what the rows say.
        is_said = name == "mastered" or (name == "by_length" and len({row.get("length") for row in rows}) == 1)
        if rows and not is_said:
            heading = HEADINGS.get(name) or name.replace("_", " ").capitalize()
            note = f"These are {_list_mastered(record)}." if name == "mastered_rows" else ""
            views[name] = TableView(heading=heading, note=note, columns=pick_columns(rows), rows=rows)
    columns, cells = pivot_tasks(record)
    if cells:
        note = "* data that stands in for the official source" if metrics.get("substitutes") else ""
        views["tasks"] = TableView(heading="Score by task", note=note, columns=columns, rows=cells)
    lead = [views.pop(name) for name in ("rows", "tasks", "mastered_rows") if name in views]
    return lead, list(views.values())


def _list_mastered(record: Mapping[str, Any]) -> str:
    """Tasks with their lengths, such as "needle (2,048, 4,096), prose (2,048)"."""
    lengths: dict[str, list[str]] = {}
    for row in list_rows(record, "mastered"):
        lengths.setdefault(format_text(row.get("task")), []).append(format_count(row.get("length")))
    return ", ".join(f"{task} ({', '.join(found)})" for task, found in lengths.items()) or "not named"


def _build_maps(record: Mapping[str, Any]) -> list[MapView]:
    """One view a task, after the mean over the tasks where there are several."""
    head_maps = record.get("metrics", {}).get("head_maps") or {}
    if not isinstance(head_maps, Mapping):
        raise ElasticAttentionError(
            f"metrics.head_maps must map a task to its head map, got {type(head_maps).__name__}."
        )
    checked = {str(task): check_head_map(head_map, str(task)) for task, head_map in head_maps.items()}
    if len(checked) > 1:
        checked = {"Mean of all tasks": average_head_maps(list(checked.values())), **checked}
    return [
        MapView(
            title=task,
            shares=shares,
            msr=mean_share(shares),
            width=CELL * len(shares),
            height=CELL * len(shares[0]),
        )
        for task, shares in checked.items()
    ]


def _list_choices(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, routes) of the samples whose routes the page can draw: a word a layer, a letter 0, 1 or - a KV head."""
    rows = [row for row in list_rows(record, "examples") if re.fullmatch(r"[01-]+( [01-]+)*", str(row.get("routes")))]
    return [(_name_choice(row), row["routes"]) for row in rows]


def _name_choice(row: Mapping[str, Any]) -> str:
    where = f"{format_text(row.get('task'))}, {format_count(row.get('length'))} tokens, sample {row.get('index')}"
    return f"{where}: MSR {format_ratio(row.get('msr'))}, score {format_ratio(row.get('score'))}"


def describe_share(share: float | None) -> str:
    """What a cell of a head map says in words."""
    if share is None:
        return "not routed"
    return "full" if share == 0 else "sparse" if share == 1 else f"sparse in {format_ratio(share)}"
