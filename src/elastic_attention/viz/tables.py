"""Markdown tables in their places: between `<!-- table:NAME -->` and `<!-- /table:NAME -->` of a Markdown file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..records import read_record, write_file
from .eval_tables import render_eval_methods, render_eval_tasks
from .gain_tables import render_gains
from .markdown import render_caption
from .paper_tables import render_checks, render_verdicts
from .policy_tables import render_policies
from .recipe_tables import render_recipe_gains, render_recipe_intervals, render_recipe_runs, render_recipes
from .renderers import (
    render_bench_cpu,
    render_demo,
    render_frontier,
    render_memory,
    render_overhead,
    render_quality,
    render_quality_speed,
)
from .speed_tables import (
    render_absent,
    render_gpu_decode,
    render_gpu_others,
    render_gpu_prefill,
    render_gpu_prefill_short,
    render_model_batches,
    render_model_decode,
    render_model_decode_short,
    render_model_prefill,
    render_model_prefill_short,
    render_route_agreement,
    render_small_models,
    render_vllm_engine,
)
from .training_tables import render_training, render_training_hours

_BLOCK = re.compile(r"(<!--\s*table:(?P<name>[\w-]+)\s*-->)(?P<body>.*?)(<!--\s*/table:(?P=name)\s*-->)", re.DOTALL)
_MARKER = re.compile(r"<!--\s*/?table:([\w-]+)\s*-->")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSource:
    """Where a table comes from: its record's file in the results folder, and the function that renders it."""

    record: str
    render: Callable[[Mapping[str, Any]], str]


TABLES = {
    "demo": TableSource(record="demo.json", render=render_demo),
    "quality_speed": TableSource(record="quality_speed.json", render=render_quality_speed),
    "bench_cpu": TableSource(record="bench_cpu.json", render=render_bench_cpu),
    "overhead": TableSource(record="overhead.json", render=render_overhead),
    "memory": TableSource(record="overhead.json", render=render_memory),
    "gpu_prefill": TableSource(record="gpu_kernels.json", render=render_gpu_prefill),
    "gpu_prefill_short": TableSource(record="gpu_kernels.json", render=render_gpu_prefill_short),
    "gpu_decode": TableSource(record="gpu_kernels.json", render=render_gpu_decode),
    "gpu_others": TableSource(record="gpu_kernels.json", render=render_gpu_others),
    "gpu_absent": TableSource(record="gpu_kernels.json", render=render_absent),
    "model_prefill": TableSource(record="gpu_model.json", render=render_model_prefill),
    "model_prefill_short": TableSource(record="gpu_model.json", render=render_model_prefill_short),
    "model_decode": TableSource(record="gpu_model.json", render=render_model_decode),
    "model_decode_short": TableSource(record="gpu_model.json", render=render_model_decode_short),
    "model_batches": TableSource(record="gpu_model.json", render=render_model_batches),
    "model_absent": TableSource(record="gpu_model.json", render=render_absent),
    "route_agreement": TableSource(record="route_agreement.json", render=render_route_agreement),
    "small_models": TableSource(record="small_models.json", render=render_small_models),
    "vllm_engine": TableSource(record="vllm_engine.json", render=render_vllm_engine),
    "policies": TableSource(record="serving_probe.json", render=render_policies),
    "quality": TableSource(record="quality.json", render=render_quality),
    "frontier": TableSource(record="quality.json", render=render_frontier),
    "gains": TableSource(record="quality.json", render=render_gains),
    "dial": TableSource(record="quality_dial.json", render=render_eval_methods),
    "dial_gains": TableSource(record="quality_dial.json", render=render_gains),
    "training": TableSource(record="training_throughput.json", render=render_training),
    "training_hours": TableSource(record="training_throughput.json", render=render_training_hours),
}

# Recipes of one model: results/recipes_MODEL.json gives what they keep, what routers gain over masks, the runs,
# and the sparsity that they end at.
for _name in ("recipes_smollm2", "recipes_coder"):
    TABLES[_name] = TableSource(record=f"{_name}.json", render=render_recipes)
    TABLES[f"{_name}_gains"] = TableSource(record=f"{_name}.json", render=render_recipe_gains)
    TABLES[f"{_name}_intervals"] = TableSource(record=f"{_name}.json", render=render_recipe_intervals)
    TABLES[f"{_name}_runs"] = TableSource(record=f"{_name}.json", render=render_recipe_runs)

# Evaluations: results/NAME.json gives the tables NAME (tasks down, methods across) and NAME_methods.
_SUITES = ("mixture", "pairs", "validation", "ruler", "longbench", "longbench_e", "longbench_v2", "almanac", "everyday")
_OTHERS = ("ruler_coder", "ruler_coder_long", "methods", "methods_coder", "methods_ruler", "extrapolation")
for _name in (*_SUITES, *_OTHERS):
    TABLES[_name] = TableSource(record=f"{_name}.json", render=render_eval_tasks)
    TABLES[f"{_name}_methods"] = TableSource(record=f"{_name}.json", render=render_eval_methods)

# The papers' claims: results/paper_MODEL.json gives the verdicts and the checks behind them.
for _name in ("paper_smollm2", "paper_coder"):
    TABLES[_name] = TableSource(record=f"{_name}.json", render=render_verdicts)
    TABLES[f"{_name}_checks"] = TableSource(record=f"{_name}.json", render=render_checks)


def update_tables(readme: Path, results: Path, check: bool) -> list[str]:
    """Bring every marked table of a Markdown file up to date with the records.

    Args:
        readme: the Markdown file; it is replaced atomically, and left alone where nothing changed.
        results: folder of the records.
        check: only compare; write nothing.

    Returns:
        Names of the tables that were out of date, in order; empty when the file agrees with the records.

    Raises:
        ElasticAttentionError: a file without markers, an unknown table name, a marker without its partner, or a record
            that cannot be read.
    """
    try:
        text = Path(readme).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ElasticAttentionError(f"Cannot read {readme}: {error}. Check the path.") from error
    _check_markers(readme, text)
    stale: list[str] = []

    def replace(block: re.Match[str]) -> str:
        table = render_table(block["name"], Path(results))
        if block["body"].strip() == table:
            return block[0]
        if block["name"] not in stale:
            stale.append(block["name"])
        return f"{block[1]}\n{table}\n{block[4]}"

    updated = _BLOCK.sub(replace, text)
    if stale and not check:
        write_file(readme, updated)
    return stale


def render_table(name: str, results: Path) -> str:
    """Render the table `name` from its record in the folder `results`, with a line that says how it was measured.

    Raises:
        ElasticAttentionError: the name is unknown, or its record cannot be read.
    """
    source = TABLES.get(name)
    if source is None:
        raise ElasticAttentionError(f"Unknown table {name!r}. Known tables: {', '.join(TABLES)}.")
    record = read_record(results / source.record)
    return f"{source.render(record)}\n\n{render_caption(record)}"


def _check_markers(readme: Path, text: str) -> None:
    """Refuse no marker at all, unknown names, and markers that are not an opening followed by its own closing."""
    names = _MARKER.findall(text)
    if not names:
        raise ElasticAttentionError(
            f"{readme} has no place for a table. Add <!-- table:NAME --> and <!-- /table:NAME --> where one belongs; "
            f"known tables: {', '.join(TABLES)}."
        )
    for name in names:
        if name not in TABLES:
            raise ElasticAttentionError(
                f"{readme} asks for the unknown table {name!r}. Known tables: {', '.join(TABLES)}."
            )
    markers = [match[0] for match in _MARKER.finditer(text)]
    paired = [marker for block in _BLOCK.finditer(text) for marker in (block[1], block[4])]
    if markers != paired:
        raise ElasticAttentionError(
            f"{readme}: each <!-- table:NAME --> needs its <!-- /table:NAME --> before the next one; "
            f"found {', '.join(markers)}."
        )
