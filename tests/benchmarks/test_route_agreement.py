"""Routes on two devices: what is overheard, what counts as the same, and the command on a tiny model."""

import dataclasses

import pytest
import route_agreement
import torch
from route_agreement import Decisions, compare, decide

from elastic_attention.evaluation.session import Session
from elastic_attention.records import read_record
from tiny_models import attach_tiny, make_model, random_routes, text

PROMPTS = [text(n, seed=n)[0].tolist() for n in (150, 90)]


def test_the_routers_own_decisions_are_heard():
    handle = attach_tiny(make_model())
    found = decide(handle, PROMPTS)
    assert found.margins.shape == found.routes.shape == (2, 3, 2)
    assert torch.equal(found.margins > 0, found.routes) and 0 < found.routes.float().mean() < 1
    for number, ids in enumerate(PROMPTS):
        with torch.no_grad():
            handle.model(torch.tensor([ids]), use_cache=True)
        assert torch.equal(handle.report()["routes"][0], found.routes[number])
    assert "decide" not in vars(handle) and "route" not in vars(handle._fused)


def test_given_routes_are_taken_while_the_routers_go_on_deciding():
    handle = attach_tiny(make_model())
    given = random_routes(handle.model, batch=2)
    forced = decide(handle, PROMPTS, given)
    assert torch.equal(handle.report()["routes"][0], given[1])
    free = decide(handle, PROMPTS)
    assert torch.equal(forced.routes[:, 0], free.routes[:, 0]), "the first layer has nothing before it"
    assert not torch.equal(forced.margins[:, 2], free.margins[:, 2])


def make_decisions(margins):
    values = torch.tensor(margins).view(1, 2, 2)
    return Decisions(margins=values, routes=values > 0)


def test_what_counts_as_right():
    reference = make_decisions([3.0, -0.1, 2.0, -4.0])
    same = compare(reference, reference, reference, None)
    assert same["is_right"] and same["agreement"] == same["agreement_given_routes"] == same["clear_ratio"] == 1
    close = make_decisions([3.1, 0.05, 1.9, -4.0])  # the second decision flips, within the bound of its layer
    row = compare(close, close, reference, torch.tensor([0.2, 0.2]))
    assert row["is_right"] and row["agreement"] == 0.75 and row["clear_ratio"] == 0.75 and row["differing_clear"] == 0
    assert row["largest_move"] == pytest.approx(0.15) and row["smallest_margin"] == pytest.approx(0.1)
    assert not compare(close, close, reference, torch.tensor([0.05, 0.2]))["is_right"]
    assert not compare(close, close, reference, None)["is_right"], "in float32 nothing may differ"
    assert not compare(close, reference, reference, None)["is_right"]


@pytest.fixture
def tiny_sessions(monkeypatch):
    """Sessions of a tiny model instead of SmolLM2; `shift` moves the margins of the bfloat16 one."""

    def open_tiny(name, *, routers, device, dtype):
        model = make_model().to(device, getattr(torch, dtype))
        handle = attach_tiny(model)
        return Session(
            name="tiny", model=model, tokenizer=None, handle=handle, device=torch.device(device), dtype=model.dtype,
            context=2048,
        )  # fmt: skip

    monkeypatch.setattr(route_agreement, "open_session", open_tiny)
    monkeypatch.setattr(route_agreement, "make_prompts", lambda session, wanted: [(None, ids, []) for ids in PROMPTS])


def test_command(tiny_sessions, tmp_path, monkeypatch):
    path = tmp_path / "routes.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert route_agreement.main(["--device", device, "--kinds", "needle", "code", "--json", str(path)]) == 0
    rows = read_record(path)["metrics"]["rows"]
    wanted = [("cpu", "bfloat16")] + ([("cuda", "float32"), ("cuda", "bfloat16")] if device == "cuda" else [])
    assert [(row["device"], row["dtype"]) for row in rows] == wanted
    assert all(row["is_right"] and row["decisions"] == 12 for row in rows)
    assert 0 < rows[0]["largest_move"] == rows[0]["largest_bound"]


def test_a_difference_is_an_error(tiny_sessions, monkeypatch):
    kept = route_agreement.decide

    def flip(handle, prompts, given=None):
        found = kept(handle, prompts, given)
        return dataclasses.replace(found, routes=~found.routes) if given is not None else found

    monkeypatch.setattr(route_agreement, "decide", flip)
    assert route_agreement.main(["--device", "cpu", "--kinds", "needle"]) == 1
