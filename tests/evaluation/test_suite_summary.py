"""From answers to the metrics of a record."""

import dataclasses
import json
import math

import pytest
import torch
from word_runs import METHODS, PLAN
from word_suite import WordSuite

from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.suite_summary import summarize_run


def test_summary(whole):
    metrics = summarize_run(PLAN, WordSuite(), whole)
    json.dumps(metrics)
    assert [row["label"] for row in metrics["rows"]] == ["dense", "routed", "routed-full", "random@0.500"]
    dense, routed = metrics["rows"][:2]
    own = [x for x in whole if x.method == "routed" and x.task != "broken"]
    cells = {(x.task, x.length) for x in own}
    mean = sum(sum(x.score for x in own if (x.task, x.length) == c) / 5 for c in cells) / len(cells)
    assert routed["score"] == pytest.approx(mean) and routed["score_low"] <= mean <= routed["score_high"]
    assert routed["weighted_score"] == pytest.approx(sum(x.score for x in own) / len(own))
    assert dense["relative_score"] == dense["relative_low"] == 1.0
    assert routed["relative_score"] == pytest.approx(routed["score"] / dense["score"])
    assert len(metrics["by_length"]) == 4 * 2 and len(metrics["by_task"]) == 4 * 2 * 3
    marked = {(row["task"], row["substitute"]) for row in metrics["by_task"]}
    assert marked == {("plain", None), ("targets", None), ("broken", WordSuite.substitutes["broken"])}
    assert {(row["group"], row["value"]) for row in metrics["by_group"]} == {
        ("category", "spoken"), ("category", "given"), ("parity", "even"), ("parity", "odd")
    }  # fmt: skip
    good = [c for c in cells if sum(x.score for x in whole if x.method == "dense" and (x.task, x.length) == c) >= 2.5]
    assert sorted((m["task"], m["length"]) for m in metrics["mastered"]) == sorted(good) and 0 < len(good) < len(cells)
    kept = sum(sum(x.score for x in own if (x.task, x.length) == c) / 5 for c in good) / len(good)
    assert metrics["mastered_rows"][1]["score"] == pytest.approx(kept)
    assert set(metrics["head_maps"]) == set(WordSuite.tasks)
    shares = torch.tensor(metrics["head_maps"]["targets"])
    assert shares.shape == (3, 2)
    assert shares.mean().item() == pytest.approx(sum(x.msr for x in own if x.task == "targets") / 10)
    assert metrics["skipped"] == [
        {"task": "broken", "length": n, "index": 3, "reason": "line 4 of words.jsonl has no answer"} for n in (80, 120)
    ]
    alone = summarize_run(dataclasses.replace(PLAN, methods=METHODS[1:2]), WordSuite(), own)
    assert alone["rows"][0]["relative_score"] is None


def test_dense_is_itself_and_few_samples_have_no_interval():
    """Dense has one right answer in twelve, so a third of the resamples have none: 0 / 0 of them all is still 1."""
    lines = [
        Line(method=label, task=task, length=120, index=index, score=float(index == 0))
        for label in ("dense", "routed")
        for task, count in (("plain", 12), ("targets", 9))
        for index in range(count)
    ]
    plan = dataclasses.replace(PLAN, lengths=(120,), methods=METHODS[:2])
    metrics = summarize_run(plan, WordSuite(), [line for line in lines if line.task == "plain"])
    dense, routed = ([row[f"relative_{end}"] for end in ("score", "low", "high")] for row in metrics["rows"])
    assert dense == [1, 1, 1] and routed == [1, -math.inf, math.inf]
    rows = {(row["label"], row["task"]): row for row in summarize_run(plan, WordSuite(), lines)["by_task"]}
    assert {key for key, row in rows.items() if row["score_low"] is None} == {
        ("dense", "targets"),
        ("routed", "targets"),
    }
    few = rows["routed", "targets"]
    assert few["score"] == pytest.approx(1 / 9) and few["score_high"] is None
    assert (few["relative_score"], few["relative_low"], few["relative_high"]) == (1, None, None)
    assert rows["dense", "targets"]["relative_low"] == 1, "by definition, and not from samples"
    wrong = [dataclasses.replace(line, score=0.0) for line in lines]
    assert summarize_run(plan, WordSuite(), wrong)["rows"][0]["relative_score"] is None


@pytest.mark.parametrize(("each", "has_interval"), [(1, False), (2, True)])
def test_lengths_of_single_samples_have_no_interval(each, has_interval):
    """Resamples of one sample are that sample: the interval of any number of such lengths would be a point."""
    lengths = tuple(range(80, 92))
    lines = [
        Line(method="dense", task="plain", length=length, index=index, score=float((length + index) % 2))
        for length in lengths
        for index in range(each)
    ]
    plan = dataclasses.replace(PLAN, lengths=lengths, methods=METHODS[:1])
    (row,) = summarize_run(plan, WordSuite(), lines)["rows"]
    assert row["score"] == 0.5 and (row["score_low"] is not None) == has_interval
