"""The bridge to lm-evaluation-harness; what needs the harness itself runs where it is installed."""

import json
from importlib.util import find_spec

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import DataError, attach
from elastic_attention.evaluation.harness import export_tasks, list_task_names, score_document, wrap_model
from elastic_attention.evaluation.plan import EvalPlan, parse_method
from elastic_attention.evaluation.runner import run_plan
from elastic_attention.tasks.suite import open_suite
from tiny_models import elastic_config, make_model

PLAN = EvalPlan(
    tasks=("niah_single_1", "qa_1"), lengths=(1700,), samples=2, methods=(parse_method("routed"),), batch_tokens=1
)


@pytest.fixture(scope="module")
def tokenizer():
    made = make_byte_tokenizer()
    made.add_special_tokens({"eos_token": "<end>"})
    return made


def test_exported_tasks_hold_what_our_runner_asks(tokenizer, tmp_path):
    suite = open_suite("ruler")
    export_tasks(suite, PLAN, tokenizer, tmp_path)
    names = list_task_names(suite, PLAN)
    assert names == ["elastic_ruler_niah_single_1_1700", "elastic_ruler_qa_1_1700"]
    for task, name in zip(PLAN.tasks, names, strict=True):
        documents = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        samples = list(suite.build(task, [0, 1], length=1700, seed=1, tokenizer=tokenizer))
        assert [d["prompt"] for d in documents] == [s.prompt for s in samples]
        assert score_document(documents[0], [f"it is {samples[0].answers[0]}"]) == {"score": 1.0}
        assert score_document(documents[0], [""]) == {"score": 0.0}


def test_given_answers_cannot_be_exported(tokenizer, tmp_path):
    plan = EvalPlan(tasks=("needle",), lengths=(1800,), samples=1, methods=PLAN.methods)
    with pytest.raises(DataError, match="our runner"):
        export_tasks(open_suite("mixture"), plan, tokenizer, tmp_path)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.parametrize("has_chat", [True, False])
def test_scores_of_the_harness_are_ours(tokenizer, tmp_path, has_chat, monkeypatch):
    import lm_eval
    from lm_eval.tasks import TaskManager

    if not has_chat:
        monkeypatch.setattr(tokenizer, "chat_template", None)
    model, suite = make_model(vocab_size=300), open_suite("ruler")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(1)
    handle = attach(model, elastic_config(model))
    handle.save_pretrained(tmp_path / "routers")
    handle.detach()
    ours = run_plan(PLAN, suite, model, tokenizer, tmp_path / "run", identity={}, routers=str(tmp_path / "routers"))
    handle = attach(model, str(tmp_path / "routers"))
    found = lm_eval.simple_evaluate(
        model=wrap_model(model, tokenizer),
        tasks=list_task_names(suite, PLAN),
        task_manager=TaskManager(include_path=str(export_tasks(suite, PLAN, tokenizer, tmp_path / "tasks"))),
        log_samples=True,
        bootstrap_iters=0,
    )
    assert any(handle.report()["msr"])
    for task, name in zip(PLAN.tasks, list_task_names(suite, PLAN), strict=True):
        lines = [line for line in ours if line.task == task]
        theirs = sorted(found["samples"][name], key=lambda entry: entry["doc_id"])
        assert [entry["resps"][0][0] for entry in theirs] == [line.answer for line in lines]
        assert [entry["score"] for entry in theirs] == [line.score for line in lines]


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("has_chat", [True, False])
def test_plain_prompts_and_chats_begin_as_ours(tmp_path, shots, has_chat):
    """A tokenizer may put a mark in front of plain text, and its chat template may write none or another."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>", "eos_token": "<end>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", begin)]
    )
    if not has_chat:
        tokenizer.chat_template = None
    for name in ("test.jsonl", "train.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    suite = open_suite("gsm8k", data=tmp_path, shots=shots, max_new_tokens=8)
    plan = EvalPlan(tasks=("gsm8k",), lengths=(600,), samples=1, methods=PLAN.methods)
    (sample,) = suite.build("gsm8k", [0], length=600, seed=1, tokenizer=tokenizer)
    assert (sample.prompt_ids[0] == begin) == (shots > 0 or not has_chat)
    folder = export_tasks(suite, plan, tokenizer, tmp_path / "tasks")
    (name,) = list_task_names(suite, plan)
    document = json.loads((folder / f"{name}.jsonl").read_text())
    encoded, _ = wrap_model(make_model(vocab_size=300), tokenizer).tok_batch_encode([document["prompt"]])
    assert encoded[0].tolist() == list(sample.prompt_ids)
