"""Routes decided early or late, beside exact ones: what each way decides, how it is counted, and the command."""

import policy_agreement
import pytest
import torch
from policy_agreement import DENSE, EXACT, Reading, Row, list_ways, read_prompt, summarize

from elastic_attention.evaluation.session import Session
from elastic_attention.models.generation import probe_routes
from elastic_attention.records import read_record
from elastic_attention.tasks import load_corpora
from hash_tokenizer import HashTokenizer
from tiny_models import attach_tiny, make_model, text

PROMPT = text(150, seed=3)


def read(handle, first=100):
    row = Row(kind="needle", prompt=PROMPT[0].tolist(), answer=[5, 6, 7])
    return {way.name: read_prompt(handle, row, way) for way in list_ways([first])}


def test_every_way_decides_as_its_policy_does():
    handle = attach_tiny(make_model())
    found = read(handle)
    handle.set_routes(None)
    handle.prefill_policy = "deferred"
    with torch.no_grad():
        handle.model(PROMPT, use_cache=True)
    assert torch.equal(found[EXACT].routes, handle.report()["routes"][0])
    assert torch.equal(found["probe"].routes, probe_routes(handle, PROMPT)[0])
    handle.prefill_policy, handle.first_chunk_tokens = "first_chunk", 100
    handle.model.generate(PROMPT, max_new_tokens=1)
    assert torch.equal(found["first_chunk 100"].routes, handle.report()["routes"][0])
    handle.prefill_policy = "deferred"
    handle.model.generate(PROMPT, max_new_tokens=1, prefill_chunk_size=75)
    assert torch.equal(found["deferred"].routes, handle.report()["routes"][0])
    assert not found[DENSE].routes.any()
    assert len({tuple(reading.routes.flatten().tolist()) for reading in found.values()}) > 2


def test_an_answer_counts_when_the_model_says_it():
    model = make_model()
    handle = attach_tiny(model)
    handle.set_routes("full")
    said = model.generate(PROMPT, max_new_tokens=3, do_sample=False)[0, PROMPT.shape[1] :].tolist()
    dense = list_ways([])[-1]
    for answer, score in ((said, 1.0), ([*said[:2], said[2] ^ 1], 0.0)):
        assert read_prompt(handle, Row(kind="needle", prompt=PROMPT[0].tolist(), answer=answer), dense).score == score


def test_agreement_is_a_share_of_the_routes():
    def make(way, score, *routes):
        return Reading(way=way, kind="needle", routes=torch.tensor([routes]) > 0, score=score)

    exact = [make(EXACT, 1.0, 1, 1, 0, 0), make(EXACT, 0.0, 0, 0, 0, 1)]
    row = summarize([make("probe", 0.0, 1, 0, 0, 0), make("probe", 0.0, 0, 0, 0, 1)], exact)
    assert (row["agreement"], row["msr"], row["score"], row["difference"]) == (0.875, 0.25, 0.0, -0.5)
    assert row["agreement_low"] == 0.75 and row["agreement_sensitive"] == 0.875 and row["agreement_robust"] is None
    assert summarize([make(DENSE, 1.0, 0, 0, 0, 0)], exact[:1])["agreement"] is None


def test_the_command_on_a_tiny_model(monkeypatch, tmp_path):
    model = make_model(max_position_embeddings=4096)
    handle = attach_tiny(model)
    tokenizer, cpu = HashTokenizer(), torch.device("cpu")
    session = Session(
        name="tiny", model=model, tokenizer=tokenizer, device=cpu, dtype=torch.float32, context=4096, handle=handle
    )
    monkeypatch.setattr(policy_agreement, "_worker", (session, load_corpora()))
    path = tmp_path / "record.json"
    options = ["--kinds", "needle", "subject", "--samples", "2", "--lengths", "600", "--first-chunks", "200"]
    assert policy_agreement.main([*options, "--json", str(path)]) == 0
    record = read_record(path)
    rows = {row["way"]: row for row in record["metrics"]["rows"]}
    assert record["n"] == 4 and set(rows) == {EXACT, "deferred", "first_chunk 200", "probe", DENSE}
    assert rows[EXACT]["agreement"] == 1 and rows["probe"]["agreement"] == pytest.approx(1, abs=0.6)
