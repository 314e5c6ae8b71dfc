"""The scores of an evaluation in the terminal."""

import pytest

from elastic_attention.viz.score_tables import build_score_tables

NAMES = ["dense", "routed", "routed-full", "xattention", "static@0.756", "retrieval_heads@0.756"]
NUMBERS = dict.fromkeys(("score", "score_low", "score_high", "msr", "esr_prefill", "esr_decode"), 0.5)
RELATIVE = {"relative_score": 0.9, "relative_low": 0.85, "relative_high": None}


def make_metrics(names, tasks=("niah_multivalue", "qa_1")):
    rows = [{"label": name, **NUMBERS, **(dict.fromkeys(RELATIVE) if name == "dense" else RELATIVE)} for name in names]
    by_task = [
        row | {"task": task, "length": length, "n": 402, "substitute": "facts" if task == "qa_1" else None}
        for row in rows
        for task in tasks
        for length in (4096, 131072)
    ]
    return {"rows": rows, "mastered_rows": rows, "by_task": by_task}


def print_lines(metrics, width=80):
    from rich.console import Console

    console = Console(width=width, highlight=False, force_terminal=False)
    with console.capture() as capture:
        console.print(*build_score_tables(metrics))
    return capture.get().splitlines()


def test_every_ratio_has_its_interval():
    (table,) = build_score_tables(make_metrics(["dense", "routed"], tasks=()))
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[-1] for row in cells if row[0] == "of dense"] == ["0.900"]
    assert [row[-2:] for row in cells if row[0] == "95%"] == [("0.50–0.50", "0.50–0.50"), *[("?–?", "0.85–?")] * 2]


def test_too_few_samples_for_an_interval():
    row = {"label": "dense", **NUMBERS, **RELATIVE, "score_low": None, "score_high": None, "relative_low": None}
    (table,) = build_score_tables({"rows": [row], "mastered_rows": [row], "by_task": []})
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[-1] for row in cells if row[0] == "95%"] == ["–"] * 3


@pytest.mark.parametrize("count", [2, 4, 5, 6])
def test_no_name_and_no_number_is_broken_at_80_columns(count):
    lines = print_lines(make_metrics(NAMES[:count]))
    words = {word for line in lines for word in line.split()}
    assert {*NAMES[:count], "niah_multivalue", "qa_1*", "4,096", "131,072", "0.50–0.50", "0.85–?"} <= words
    assert max(map(len, lines)) <= 80


def test_more_than_four_methods_have_a_row_each():
    lines = print_lines(make_metrics(NAMES))
    assert [line.split() for line in lines if line.startswith("routed-full")] == [
        ["routed-full", "0.500", "0.50–0.50", "0.900", "0.85–?", "0.900", "0.85–?"],
        ["routed-full", "0.500", "0.500", "0.500"],
    ]
    place = next(number for number, line in enumerate(lines) if line.startswith("qa_1*"))
    assert lines[place].split() == ["qa_1*", "4,096", "402", "dense", "0.500"]
    assert lines[place + 1].split() == ["routed", "0.500"]


def test_a_method_that_was_not_asked_a_task_has_a_gap():
    metrics = make_metrics(NAMES)
    metrics["by_task"] = [row for row in metrics["by_task"] if row["label"] != "xattention" or row["task"] == "qa_1"]
    assert ["xattention", "–"] in [line.split() for line in print_lines(metrics)]
