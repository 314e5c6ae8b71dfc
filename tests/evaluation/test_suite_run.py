"""What a whole evaluation refuses before it takes the output or asks anything."""

import dataclasses

import pytest
import torch
from word_runs import PLAN, TOKENIZER
from word_suite import WordSuite

from elastic_attention import AdapterError, BackendUnavailable
from elastic_attention.evaluation.plan import Shard, parse_method
from elastic_attention.evaluation.session import Base
from elastic_attention.evaluation.suite_run import Routing, evaluate_suite


def ask(subject, output, methods, backend="auto"):
    model, routers = subject
    base = Base(
        name="tiny",
        model=model,
        tokenizer=TOKENIZER,
        device=model.device,
        dtype=torch.float32,
        context=model.config.max_position_embeddings,
    )
    plan = dataclasses.replace(PLAN, samples=1, methods=tuple(map(parse_method, methods)))
    routing = Routing(routers=routers, backend=backend)
    return evaluate_suite(base, WordSuite(), plan, output, routing=routing, shard=Shard())


@pytest.mark.parametrize(("methods", "backend"), [(("dense", "routed"), "hopper"), (("all_sparse", "moba"), "triton")])
def test_a_backend_that_cannot_run_here_is_refused_before_anything_is_asked(subject, tmp_path, methods, backend):
    with pytest.raises(BackendUnavailable, match=f"backend='{backend}' cannot run"):
        ask(subject, tmp_path / "out", methods, backend)
    assert not (tmp_path / "out").exists()
    assert subject[0].config._attn_implementation == "sdpa" and "generate" not in vars(subject[0])


def test_a_backend_that_can_is_taken(subject, tmp_path):
    record = ask(subject, tmp_path / "out", ("dense", "routed", "moba"), "cpu")
    assert record["config"]["routing"]["backend"] == "cpu" and record["n"] == 18


@pytest.mark.parametrize(
    ("method", "words"),
    [("static=nowhere", "no mask folder nowhere; .*static_routes"), ("fa_ssa=nowhere", "adapter.*elastic_config.json")],
)
def test_a_folder_that_is_not_there_is_asked_for_what_it_should_hold(subject, tmp_path, method, words):
    with pytest.raises(AdapterError, match=words):
        ask(subject, tmp_path / "out", ("dense", method))
    assert not (tmp_path / "out").exists()
