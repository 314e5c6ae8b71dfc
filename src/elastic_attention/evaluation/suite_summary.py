"""From the lines of a run to the metrics of its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..tasks.suite import Suite
from .answer_log import Line
from .intervals import LEAST_SAMPLES, bootstrap_macro
from .methods import Method
from .plan import EvalPlan
from .readers import read_routes

Metrics = dict[str, Any]
BASE = "dense"
MASTERED = 0.5
EXAMPLES, EXAMPLE_CHARS = 2, 300


def summarize_run(plan: EvalPlan, suite: Suite, lines: Sequence[Line]) -> Metrics:
    """Metrics of an evaluation's record.

    Returns:
        rows: one a method: method, target, decode, n, score (mean over the suite's headline tasks and lengths, each
            counting the same) with its 95% interval, weighted_score (mean over samples), relative_score to the dense
            method with a paired interval, msr, esr_prefill, esr_decode, kv_bytes, kv_bytes_dense, seconds. Intervals
            are None where n is below `LEAST_SAMPLES`, and where hardly any task and length has a second sample.
        mastered_rows, mastered: the same over the tasks and lengths where the dense method scores .50 or more, and
            which these are; where it does not, nobody can show what sparsity loses. Empty without a dense method.
        by_length: the same for each length.
        by_task: one a method, task and length, with its category.
        by_group: one a method, group and value of it, such as bucket and 4-8k.
        by_task_group: the same for each task.
            Every row counts its cut and empty answers, and names the data that stood in for an official source.
        head_maps, examples: task -> L lists of G shares of samples whose head was sparse, None where a layer is not
            routed; and the first samples of each task and length with answer and routes. Both of the first method
            whose routes differ between samples.
        substitutes, skipped: task -> stand-in; every sample that could not be asked, with its reason.
        counts: asked, skipped, cut (an answer without end), empty.
    """
    answered = [line for line in lines if not line.skipped]
    headline = [line for line in answered if line.task in suite.headline]
    used = {task: name for task, name in suite.substitutes.items() if task in plan.tasks}
    rows, by_length, by_task, by_group, by_task_group = [], [], [], [], []
    for method in plan.methods:
        rows += _rows(method, headline, {})
        for length in plan.lengths:
            by_length += _rows(method, [x for x in headline if x.length == length], {"length": length})
            for task in plan.tasks:
                cell = [x for x in answered if x.length == length and x.task == task]
                by_task += _rows(method, cell, {"length": length, "task": task, "category": _most_common(cell)})
        for group, value in _list_labels(headline):
            of_value = [x for x in headline if _labels(x).get(group) == value]
            by_group += _rows(method, of_value, {"group": group, "value": value})
            for task in plan.tasks:
                cell = [x for x in of_value if x.task == task]
                by_task_group += _rows(method, cell, {"task": task, "group": group, "value": value})
    mastered = _find_mastered(headline)
    mastered_rows = [
        row for m in plan.methods for row in _rows(m, [x for x in headline if (x.task, x.length) in mastered], {})
    ]
    routed = _find_routed(plan, answered)
    skipped = {(line.task, line.length, line.index): line.skipped for line in lines if line.skipped}
    for row_list in (rows, mastered_rows, by_length, by_task, by_group, by_task_group):
        _mark_substitutes(row_list, used)
    return {
        "rows": rows,
        "mastered_rows": mastered_rows,
        "mastered": [{"task": task, "length": length} for task, length in mastered],
        "by_length": by_length,
        "by_task": by_task,
        "by_group": by_group,
        "by_task_group": by_task_group,
        "head_maps": _average_routes(routed),
        "examples": _pick_examples(routed),
        "substitutes": used,
        "skipped": [
            {"task": task, "length": length, "index": index, "reason": reason}
            for (task, length, index), reason in skipped.items()
        ],
        "counts": {
            "asked": len(answered),
            "skipped": len(skipped),
            "cut": sum(line.is_cut for line in answered),
            "empty": sum(is_empty(line) for line in answered),
        },
    }


def is_empty(line: Line) -> bool:
    """Did the model say nothing?"""
    return not line.skipped and not line.answer.strip()


def _rows(method: Method, lines: Sequence[Line], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """The row of a method over these lines of all methods; none where it has none."""
    own = [line for line in lines if line.method == method.label]
    if not own:
        return []
    base = {line.key[1:]: line.score for line in lines if line.method == BASE}
    is_paired = all(line.key[1:] in base for line in own)
    cells: dict[str, list[Line]] = {}
    for line in own:
        cells.setdefault(f"{line.task}@{line.length}", []).append(line)
    scores = {cell: torch.tensor([x.score for x in group], dtype=torch.float64) for cell, group in cells.items()}
    paired = {
        cell: torch.tensor([base[x.key[1:]] if is_paired else 1.0 for x in group], dtype=torch.float64)
        for cell, group in cells.items()
    }
    macro = bootstrap_macro(scores, paired)
    has_base = is_paired and any(float(values.sum()) > 0 for values in paired.values())
    estimates: dict[str, tuple[float | None, ...]] = macro | ({} if has_base else {"relative": (None,) * 3})
    # The first sample of a task and length says nothing of how far the next one would lie from it.
    if len(own) - len(cells) < LEAST_SAMPLES - 1:
        estimates = {key: (values[0], None, None) for key, values in estimates.items()}
    if has_base and method.label == BASE:  # to itself, by definition; a resample with nothing right would say 0 / 0
        estimates["relative"] = (1.0, 1.0, 1.0)
    return [
        {
            "method": method.name,
            "target": method.target,
            "decode": method.decode,
            "label": method.label,
            **labels,
            "tasks": sorted({line.task for line in own}),
            "n": len(own),
            **dict(zip(("score", "score_low", "score_high"), estimates["score"], strict=True)),
            "weighted_score": _mean([line.score for line in own]),
            **dict(zip(("relative_score", "relative_low", "relative_high"), estimates["relative"], strict=True)),
            **{key: _mean([getattr(line, key) for line in own]) for key in MEANS},
            "cut": sum(line.is_cut for line in own),
            "empty": sum(is_empty(line) for line in own),
        }
    ]


MEANS = (
    "prompt_tokens",
    "msr",
    "esr_prefill",
    "esr_decode",
    "kv_bytes",
    "kv_bytes_dense",
    "prefill_seconds",
    "seconds",
)


def _find_mastered(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """(task, length) where the dense method scores .50 or more."""
    scores: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if line.method == BASE:
            scores.setdefault((line.task, line.length), []).append(line.score)
    return [cell for cell, values in scores.items() if sum(values) >= MASTERED * len(values)]


def _find_routed(plan: EvalPlan, lines: Sequence[Line]) -> list[Line]:
    """The lines of the first method whose routes differ between samples for a reason."""
    for method in plan.methods:
        own = [line for line in lines if line.method == method.label and line.routes]
        if method.name != "random" and len({line.routes for line in own}) > 1:
            return own
    return []


def _average_routes(lines: Sequence[Line]) -> dict[str, list[list[float | None]]]:
    return {task: _average_maps([line.routes for line in lines if line.task == task]) for task in _list_tasks(lines)}


def _pick_examples(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The first samples of every task and length, with their routes."""
    chosen = [line for line in lines if line.index < EXAMPLES]
    return [
        {key: getattr(line, key) for key in ("task", "length", "index", "prompt_tokens", "score", "msr", "routes")}
        | {"label": line.method, "answer": line.answer[:EXAMPLE_CHARS]}
        for line in chosen
    ]


def _list_tasks(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.task for line in lines))


def _average_maps(texts: Sequence[str]) -> list[list[float | None]]:
    maps = [read_routes(text) for text in texts]
    return [
        [None if None in heads else sum(heads) / len(heads) for heads in zip(*layers, strict=True)]
        for layers in zip(*maps, strict=True)
    ]


def _mark_substitutes(rows: Sequence[dict[str, Any]], used: Mapping[str, str]) -> None:
    """Name in every row the data that stood in for an official source, None where there was none."""
    for row in rows:
        row["substitute"] = "; ".join(dict.fromkeys(used[task] for task in row.pop("tasks") if task in used)) or None


def _most_common(lines: Sequence[Line]) -> str | None:
    """The category that most samples of a task have."""
    return Counter(line.category for line in lines).most_common(1)[0][0] if lines else None


def _list_labels(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(group, label) pairs in order of appearance."""
    return list(dict.fromkeys(pair for line in lines for pair in _labels(line).items()))


def _labels(line: Line) -> dict[str, str]:
    return {"category": line.category, **(line.groups or {})}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
