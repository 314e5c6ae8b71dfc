"""`demo` on a tiny model: the table, the report, the record and the exit code."""

import pytest

from elastic_attention.cli import demo as cli_demo
from elastic_attention.evaluation import demo
from elastic_attention.records import read_record
from elastic_attention.tasks import KINDS

KEYS = {
    "task", "prompt_tokens", "expected", "answer", "correct", "msr", "esr_prefill", "esr_decode", "prefill_seconds",
    "prefill_seconds_dense", "kv_bytes", "kv_bytes_dense", "answer_dense", "correct_dense",
}  # fmt: skip


@pytest.fixture
def small_demo(tiny, monkeypatch):
    """Two short prompts on the tiny model; gives the command's arguments."""
    pytest.importorskip("jinja2")
    monkeypatch.setattr(cli_demo, "MODEL", tiny[1])
    prompts = (
        demo.DemoPrompt(task="needle", kind="needle", target_tokens=1024),
        demo.DemoPrompt(task="classes", kind="classes", target_tokens=1024),
    )
    monkeypatch.setattr(demo, "PROMPTS", prompts)
    return ["demo", *tiny[2:]]


def test_demo_writes_table_report_and_record(call, small_demo, tmp_path):
    code, out, err = call(*small_demo, "--json", "demo.json", "--report", "page.html")
    assert code == 0, err
    assert "needle" in out and "KV cache" in out
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")
    record = read_record("demo.json")
    rows = record["metrics"]["rows"]
    assert [row["task"] for row in rows] == ["needle", "classes"] == list(record["metrics"]["head_maps"])
    for row in rows:
        assert row.keys() >= KEYS
        assert 900 < row["prompt_tokens"] <= 1024
        assert 0 < row["kv_bytes"] <= row["kv_bytes_dense"]
        assert 0 <= row["esr_decode"] <= row["msr"]
        assert row["prefill_seconds"] > 0 and row["prefill_seconds_dense"] > 0


def test_limit(call, small_demo):
    call(*small_demo, "--limit", "1", "--json", "demo.json")
    assert read_record("demo.json")["n"] == 1


def test_lost_answers_fail_the_demo(call, small_demo, monkeypatch):
    monkeypatch.setattr(demo, "loses_answers", lambda rows: True)
    code, out, _ = call(*small_demo)
    assert code == 1 and "fewer prompts right" in out


def test_loses_answers_counts():
    right, wrong, better = (
        {"correct": True, "correct_dense": True},
        {"correct": False, "correct_dense": True},
        {"correct": True, "correct_dense": False},
    )
    assert not demo.loses_answers([right, wrong, better])
    assert demo.loses_answers([right, wrong])


def test_prompts_are_many_kinds_of_real_lengths():
    kinds = {prompt.kind for prompt in demo.PROMPTS}
    assert len(kinds) >= 6 and demo.DOCUMENT in kinds
    assert kinds - {demo.DOCUMENT} <= set(KINDS)
    assert all(KINDS[kind].metric == "exact" for kind in kinds - {demo.DOCUMENT})
    assert all(2048 <= prompt.target_tokens <= 8192 for prompt in demo.PROMPTS)
    assert len({prompt.task for prompt in demo.PROMPTS}) == len(demo.PROMPTS)


def test_document_is_whole_and_holds_its_answer():
    sample = demo._make_document_sample(demo.load_corpora())
    assert sample.answer == " 22 February Street"
    assert sample.context.count(f"{sample.answer_prefix}{sample.answer}") == 1
    assert len(sample.context.splitlines()) > 100
