"""`run` and `inspect` on a tiny model."""

import io

import pytest

from elastic_attention.records import read_record


def test_run_answers_and_writes_a_record(call, tiny, document):
    arguments = ("run", "--prompt-file", document, "--question", "Which colour?", "--max-new-tokens", "4")
    code, out, _ = call(*arguments, "--compare", "--json", "run.json", *tiny)
    assert code == 0 and "MSR" in out
    record = read_record("run.json")
    elastic, dense = record["metrics"]["rows"]
    assert (elastic["way"], dense["way"]) == ("elastic", "dense")
    assert elastic["new_tokens"] == dense["new_tokens"] == 4
    assert elastic["routed"] and 0 < elastic["msr"] < 1
    assert elastic["kv_bytes"] < elastic["kv_bytes_dense"] == dense["kv_bytes"]
    assert len(record["metrics"]["head_maps"][document.name]) == record["model"]["layers"] == 3


def test_run_without_compare_runs_once(call, tiny, document):
    code, out, _ = call("run", "--prompt-file", document, "--question", "Why?", "--max-new-tokens", "1", *tiny)
    assert code == 0 and "dense\n" not in out


def test_budget_moves_the_sparsity(call, tiny, document):
    ratios = []
    for budget in ("-1000", "1000"):
        call("inspect", "--prompt-file", document, "--budget", budget, "--json", "i.json", *tiny)
        ratios.append(read_record("i.json")["metrics"]["rows"][0]["msr"])
    assert ratios == [0.0, 1.0]


def test_full_decode_keeps_all_keys(call, tiny, document):
    options = ("--decode", "full", "--budget", "1000", "--max-new-tokens", "2", "--json", "r.json")
    call("run", "--prompt-file", document, "--question", "Why?", *options, *tiny)
    row = read_record("r.json")["metrics"]["rows"][0]
    assert row["msr"] == 1.0 and row["kv_bytes"] == row["kv_bytes_dense"]


def test_inspect_draws(call, tiny, document, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = call("inspect", "--prompt-file", document, "--picture", "heads.svg", *tiny)
    assert code == 0 and "KV 1" in out and document.name in out
    assert "<svg" in (tmp_path / "heads.svg").read_text(encoding="utf-8")


def test_inspect_says_that_a_prompt_is_too_short(call, tiny, tmp_path):
    (tmp_path / "short.txt").write_text("Hello.", encoding="utf-8")
    code, out, _ = call("inspect", "--prompt-file", "short.txt", *tiny)
    assert code == 0 and "too short" in out


def test_question_changes_the_prompt(call, tiny, document):
    lengths = []
    for question in ("", "Which colour is the boat?"):
        call("inspect", "--prompt-file", document, "--question", question, "--json", "i.json", *tiny)
        lengths.append(read_record("i.json")["metrics"]["rows"][0]["prompt_tokens"])
    assert lengths[0] == len(document.read_text(encoding="utf-8")) < lengths[1]


def test_a_text_may_come_through_a_pipe(call, tiny, document, monkeypatch):
    with document.open() as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        code, _, err = call("inspect", "--prompt-file", "-", "--json", "piped.json", *tiny)
    assert code == 0, err
    call("inspect", "--prompt-file", document, "--json", "read.json", *tiny)
    assert read_record("piped.json")["metrics"]["rows"] == read_record("read.json")["metrics"]["rows"]


def test_a_terminal_without_the_letters_of_an_answer_shows_the_others(call, tiny, document, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    code, _, err = call("run", "--prompt-file", document, "--question", "Why?", "--max-new-tokens", "8", *tiny)
    out.flush()
    assert code == 0 and b"elastic\n" in out.buffer.getvalue(), err
    assert b" ? prefill " in out.buffer.getvalue()
