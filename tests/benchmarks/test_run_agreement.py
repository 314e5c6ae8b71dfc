"""Two runs of one plan: what counts as the same."""

import json
from dataclasses import asdict, replace

import pytest
import run_agreement

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.records import build_record

LINES = [
    Line(method=method, task="vt", length=64, index=index, prompt_sha256="a", answer="7", score=1.0, seconds=index)
    for method in ("dense", "routed")
    for index in range(2)
]


@pytest.fixture
def compare(tmp_path):
    """Compare these lines and figures with those of `LINES`; gives the exit code and the metrics of the record."""

    def run(lines, **metrics):
        arguments = []
        for name, side, figures in (("one", LINES, {}), ("two", lines, metrics)):
            (tmp_path / name).mkdir()
            text = "".join(json.dumps(asdict(line)) + "\n" for line in side)
            (tmp_path / name / "answers-0-of-1.jsonl").write_text(text)
            rows = {"rows": [{"label": "dense", "score": 1.0, "prefill_seconds": len(arguments)}]} | figures
            made = {"config": {}, "model": "m", "data": "d", "seed": 1, "n": 4, "seconds": 1.0, "bytes": None}
            record = build_record("eval", device=f"{name} GPU", metrics=rows, **made)
            (tmp_path / f"{name}.json").write_text(json.dumps(record))
            arguments.append(tmp_path / name)
        arguments += ["--records", tmp_path / "one.json", tmp_path / "two.json", "--record", tmp_path / "both.json"]
        code = run_agreement.main([str(argument) for argument in arguments])
        return code, json.loads((tmp_path / "both.json").read_text())

    return run


def test_time_is_no_difference(compare):
    code, record = compare([replace(line, seconds=9.0) for line in reversed(LINES)])
    assert code == 0 and record["metrics"]["differences"] == [] and record["n"] == 4
    assert [row["label"] for row in record["metrics"]["rows"]] == ["dense", "routed"]
    assert all(row["is_equal"] and row["n_equal"] == 2 for row in record["metrics"]["rows"])
    assert record["device"] == "1 x one GPU against 1 x two GPU"


def test_another_answer_is_counted(compare):
    code, record = compare([*LINES[:3], replace(LINES[3], answer="8", score=0.0)])
    dense, routed = record["metrics"]["rows"]
    assert code == 1 and dense["is_equal"] and not routed["is_equal"]
    assert (routed["n_equal"], routed["equal_answer"], routed["equal_prompt_sha256"]) == (1, 1, 2)


def test_an_answer_that_is_missing_is_a_difference(compare):
    code, record = compare(LINES[:3])
    dense, routed = record["metrics"]["rows"]
    assert code == 1 and dense["is_equal"] and not routed["is_equal"]
    assert (routed["n_first"], routed["n_second"], routed["n"], routed["n_equal"]) == (2, 1, 1, 1)


def test_figures_of_the_records_count(compare):
    code, record = compare(LINES, counts={"asked": 3})
    assert code == 1 and record["metrics"]["differences"] == ["metrics/counts"]


def test_a_folder_without_answers_is_named(tmp_path):
    with pytest.raises(ElasticAttentionError, match="holds no answers"):
        run_agreement.read_run(tmp_path)
