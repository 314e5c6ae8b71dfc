"""Asking a batch: whose answers they are, where they end, and what is counted."""

import dataclasses

import pytest
import torch
from word_runs import METHODS, PLAN, TOKENIZER, make_samples, run
from word_suite import WordSuite

from elastic_attention.evaluation.asking import ask_samples, cut_at_stop
from elastic_attention.evaluation.plan import parse_method
from elastic_attention.evaluation.readers import open_reader, read_routes, write_routes
from elastic_attention.evaluation.suite_summary import summarize_run


def test_dense_is_the_base_model(subject, whole):
    model, _ = subject
    lines = [line for line in whole if line.method == "dense" and line.task == "plain"]
    samples = {(s.length, s.index): s for length in PLAN.lengths for s in make_samples(range(5), length)}
    for line in lines:
        ids = torch.tensor([samples[line.length, line.index].prompt_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == line.answer


def test_given_answers_score_as_greedy_decoding_would(subject):
    """Fed with its own greedy answer, the model says it at every place."""
    model, routers = subject
    (sample,) = make_samples([0])
    for method in METHODS[:3]:
        with open_reader(method, model, routers=routers) as reader:
            (spoken,) = ask_samples(reader, TOKENIZER, [sample])
            target = dataclasses.replace(sample, target_ids=spoken.answer.token_ids)
            other = dataclasses.replace(target, index=1, prompt_ids=sample.prompt_ids[9:], target_ids=(5, 6, 7))
            followed = ask_samples(reader, TOKENIZER, [target, other])
        assert followed[0].answer.token_ids == spoken.answer.token_ids
        assert followed[0].books["msr"] == spoken.books["msr"]
        assert followed[0].books["esr_prefill"] == spoken.books["esr_prefill"]


def test_answers_without_end_and_empty_ones_are_counted(subject, tmp_path, monkeypatch):
    model, _ = subject
    plan = dataclasses.replace(PLAN, tasks=("plain", "broken"), lengths=(80,), methods=METHODS[:1])
    lines = run(subject, tmp_path / "endless", plan=plan)
    counts = summarize_run(plan, WordSuite(), lines)["counts"]
    assert counts == {"asked": 9, "skipped": 1, "cut": 9, "empty": 0}
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(97)))
    ended = run(subject, tmp_path / "ended", plan=plan)
    assert {x.new_tokens for x in ended if not x.skipped} == {1} and not any(x.is_cut for x in ended)
    monkeypatch.setattr(TOKENIZER, "decode", lambda ids, **_: " \n", raising=False)
    silent = run(subject, tmp_path / "silent", plan=plan)
    counts = summarize_run(plan, WordSuite(), silent)["counts"]
    assert counts == {"asked": 9, "skipped": 1, "cut": 0, "empty": 9}


def test_an_answer_that_said_its_stop_text_is_not_cut(subject):
    model, routers = subject
    (sample,) = make_samples([0])
    with open_reader(parse_method("dense"), model, routers=routers) as reader:
        (endless,) = ask_samples(reader, TOKENIZER, [sample])
        (stopped,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(sample, stop=(" ",))])
    assert endless.is_cut and not stopped.is_cut
    assert stopped.answer.text == endless.answer.text.split(" ")[0]


def test_nothing_is_generated_behind_a_stop_text(subject, monkeypatch):
    """Rows of a batch stop each for itself; the batch is as long as its longest row, for every method."""
    model, routers = subject
    first, second = make_samples([0, 1])
    with open_reader(parse_method("dense"), model, routers=routers) as reader:
        endless = ask_samples(reader, TOKENIZER, [first, second])
    said = [str(reply.answer.token_ids[2]) for reply in endless]
    stopping = [dataclasses.replace(first, stop=(said[0],)), second]
    for method in METHODS[:2]:
        with open_reader(method, model, routers=routers) as reader:
            replies = ask_samples(reader, TOKENIZER, stopping)
            alone = ask_samples(reader, TOKENIZER, stopping[:1])[0]
        if method.label == "dense":
            assert [len(reply.answer.token_ids) for reply in replies] == [3, 6]
            assert replies[0].answer.token_ids == endless[0].answer.token_ids[:3] == alone.answer.token_ids
            assert replies[0].answer.text == endless[0].answer.text.split(said[0])[0] and not replies[0].is_cut
            per_token = replies[0].books["kv_bytes"] / (len(first.prompt_ids) + 5)
            assert alone.books["kv_bytes"] == per_token * (len(first.prompt_ids) + 2)
            dense = [reply.books["kv_bytes_dense"] for reply in replies]
        assert [reply.books["kv_bytes_dense"] for reply in replies] == dense, "methods count the same columns"
    opening = str(endless[0].answer.token_ids[0])
    with open_reader(METHODS[0], model, routers=routers) as reader:
        (silent,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(first, stop=(opening,))])
        (reply,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(first, stop=(opening,), min_new_tokens=1)])
    assert silent.answer.text == "" and len(silent.answer.token_ids) == 1 and not silent.is_cut
    assert reply.answer.text and str(reply.answer.token_ids[0]) != opening, "an answer begins with no stop text"


def test_stops():
    assert cut_at_stop("\na\nb", ("\n",)) == ""
    assert cut_at_stop("\na\nb", ("\n",), 1) == "\na"
    assert cut_at_stop("one END two", ("STOP", "END")) == "one "
    assert cut_at_stop("one", ("END",)) == "one"


def test_routes_are_those_of_the_method_for_one_batch(subject):
    (sample,) = make_samples([0])
    with open_reader(parse_method("random@1.0"), subject[0], routers=subject[1]) as reader:
        (reply,) = ask_samples(reader, TOKENIZER, [sample])
        assert reply.books["msr"] == 1.0
        with reader.reading([0]):
            assert reader.handle.has_given_routes
        assert not reader.handle.has_given_routes
    with pytest.raises(RuntimeError, match="boom"), open_reader(parse_method("dense"), subject[0], routers=subject[1]):
        raise RuntimeError("boom")
    assert subject[0].config._attn_implementation == "sdpa"


def test_routes_as_text():
    routes = torch.tensor([[True, False], [True, True], [False, False]])
    text = write_routes(routes, (0, 2))
    assert text == "10 -- 00" and read_routes(text) == [[1, 0], [None, None], [0, 0]]


def test_random_heads_are_drawn_anew_for_every_sample_task_and_length(subject):
    model, routers = subject
    samples = [make_samples([0])[0], make_samples([1])[0], dataclasses.replace(make_samples([0])[0], task="other")]
    samples.append(dataclasses.replace(samples[0], length=samples[0].length + 1))
    with open_reader(parse_method("random@0.5"), model, routers=routers) as reader:
        routes = [ask_samples(reader, TOKENIZER, [sample])[0].books["routes"] for sample in (*samples, samples[0])]
    assert len(set(routes)) == 4 and routes[0] == routes[-1]
