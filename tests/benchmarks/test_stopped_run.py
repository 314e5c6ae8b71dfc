"""The record of a run that was stopped in the middle."""

import json

import pytest
import stopped_run

from byte_tokenizer import make_byte_tokenizer
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.plan import EvalPlan, parse_method
from elastic_attention.evaluation.runner import run_plan
from elastic_attention.records import build_record
from elastic_attention.tasks.suite import open_suite
from tiny_models import make_model

FACTS = {"config": {}, "data": "d", "seed": 1, "n": 1, "seconds": 1.0, "bytes": None, "metrics": {"rows": []}}


@pytest.fixture
def stopped(tmp_path):
    """A folder whose last task only one method has answered, and a record of another run."""
    suite = open_suite("mixture")
    plan = EvalPlan(
        tasks=("needle", "code"), lengths=(512,), samples=2, methods=(parse_method("dense"), parse_method("all_sparse"))
    )
    identity = {"model": {"name": "/models/tiny"}, "routing": {"routers": None}, "adapters": {}, "weights": "w"}
    folder = tmp_path / "run"
    run_plan(plan, suite, make_model(vocab_size=300), make_byte_tokenizer(), folder, identity=identity)
    (path,) = folder.glob("answers-*.jsonl")
    kept = [text for text in path.read_text().splitlines(keepends=True) if '"all_sparse", "task": "code"' not in text]
    path.write_text("".join(kept))
    like = build_record("eval", model="m", device="1 GPU", **FACTS)
    (tmp_path / "like.json").write_text(json.dumps(like))
    return folder


def test_samples_count_that_every_method_has_answered(stopped, tmp_path):
    stopped_run.main([str(stopped), "--like", str(tmp_path / "like.json"), "--json", str(tmp_path / "made.json")])
    record = json.loads((tmp_path / "made.json").read_text())
    assert [(row["label"], row["n"]) for row in record["metrics"]["rows"]] == [("dense", 2), ("all_sparse", 2)]
    assert record["config"]["plan"]["tasks"] == ["needle"] and record["config"]["asked"]["tasks"] == ["needle", "code"]
    assert record["device"] == "1 GPU" and record["model"]["name"] == "tiny" and "stopped" in record["command"]


def test_nothing_to_count_is_named(stopped, tmp_path):
    with pytest.raises(ElasticAttentionError, match="holds no run"):
        stopped_run.read_run(tmp_path)
    plan = stopped_run.read_plan(stopped_run.read_run(stopped))
    (path,) = stopped.glob("answers-*.jsonl")
    path.write_text("".join(text for text in path.read_text().splitlines(keepends=True) if '"dense"' in text))
    with pytest.raises(ElasticAttentionError, match="no sample that all of dense, all_sparse"):
        stopped_run.pick_lines(plan, stopped)
