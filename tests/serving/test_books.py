"""Books of an engine: slots come and go, routes stay with their request."""

import dataclasses

import pytest
import torch

from elastic_attention.config import TriangleConfig
from elastic_attention.errors import UnsupportedModel
from elastic_attention.serving.books import RouteBooks
from elastic_attention.serving.policy import (
    DENSE,
    RoutePlan,
    ServingConfig,
    check_serving,
    plan_routes,
    streaming,
)
from elastic_attention.serving.report import report_request
from elastic_attention.serving.requests import read_route_request
from elastic_attention.serving.virtual import cut_pieces
from tiny_models import LAYERS, NEEDED, attach_tiny, elastic_config, make_model, text

CONFIG = elastic_config(make_model())
HEADS = CONFIG.base_model.num_kv_heads


def make_books(policy="deferred", **options):
    serving = ServingConfig(policy=policy, first_chunk_tokens=60, **options)
    return RouteBooks(CONFIG, serving, num_slots=2, device=torch.device("cpu"))


def step(books, progress, new=(), finished=(), preempted=()):
    books.begin_step(new=new, finished=finished, preempted=preempted, progress=progress)
    return books.plan_step(list(progress))


def plan(policy, prompt, **extra):
    return plan_routes(read_route_request(extra, CONFIG), make_books(policy).serving, CONFIG, prompt)


def test_plans():
    assert plan("deferred", 100) == RoutePlan(decide_at=100, sparse_from=100)
    assert plan("first_chunk", 100) == RoutePlan(decide_at=60, sparse_from=60)
    assert plan("first_chunk", 55) == RoutePlan(decide_at=55, sparse_from=55)
    assert plan("probe", 100) == RoutePlan(decide_at=None, sparse_from=0)
    assert plan("deferred", NEEDED) == plan("probe", NEEDED) == plan("deferred", 100, elastic_routes="off") == DENSE
    assert plan("deferred", 3, elastic_routes="sparse") == RoutePlan(decide_at=None, sparse_from=0)


def test_a_prompt_in_chunks_decides_once_and_decodes_sparsely():
    books = make_books()
    first = step(books, {"a": (0, 40)}, new=[("a", 100, {})])
    second = step(books, {"a": (40, 60)})
    third = step(books, {"a": (100, 1)})
    assert not first.deciding and not first.has_sparse
    assert [row for row, _ in second.deciding] == [0] and not second.has_sparse
    assert not third.deciding and third.has_sparse


def test_a_preempted_request_keeps_its_routes_and_is_computed_as_before():
    books = make_books()
    step(books, {"a": (0, 100)}, new=[("a", 100, {})])
    routes = torch.rand(LAYERS, HEADS) < 0.5
    books.routes[books.requests["a"].slot] = routes
    step(books, {"b": (0, 20), "c": (0, 20)}, new=[("b", 20, {}), ("c", 20, {})], preempted=["a"])
    again = step(books, {"a": (0, 104)}, new=[("a", 100, {})], finished=["b"])
    assert torch.equal(books.routes[books.requests["a"].slot], routes)
    assert not again.deciding  # prompt dense, generated tokens by the routes
    pieces = cut_pieces(again.spans, CONFIG.sparse_pattern.block_size)
    spans = list(zip(pieces.end.tolist(), pieces.is_sparse.tolist(), strict=True))
    assert spans == [(100, False), (104, True)]


def test_given_routes_apply_at_once_and_nothing_is_left_behind():
    books = make_books()
    digits = "01" * (LAYERS * HEADS // 2)
    taken = step(books, {"a": (0, 30)}, new=[("a", 30, {"elastic_routes": digits})])
    assert [span.sparse_from for span in taken.spans] == [0]
    assert books.routes[books.requests["a"].slot, 0].tolist() == [False, True]
    names, counts = books.take_decided()
    assert (names, counts.tolist()) == (["a"], [len(digits) // 2]) and books.take_decided()[0] == []
    books.end_step()
    assert not books.is_open and books.num_seated == 1
    step(books, {}, finished=["a", "never seen"])
    assert books.num_seated == 0 and not books.requests


@pytest.mark.parametrize(
    "extra, word",
    [
        ({"elastic_budget": float("nan")}, "finite"),
        ({"elastic_budget": True}, "finite"),
        ({"elastic_budget": "1"}, "finite"),
        ({"elastic_routes": 5}, "elastic_routes=5"),
        ({"elastic_routes": "0" * 5}, f"{LAYERS} x {HEADS}"),
        ({"elastic_routes": "x" * 500}, "500|502 characters"),
        ({"elastic_root": 1}, "elastic_root"),
    ],
)
def test_options_that_do_not_fit(extra, word):
    with pytest.raises(ValueError, match=word):
        read_route_request(extra | {"something_else": 1}, CONFIG)


@pytest.mark.parametrize(
    "data",
    [
        {"policy": "guess"},
        {"first_chunk_tokens": 0},
        {"router": "x"},
        {"routers": ["one", "two"]},
        {"budget": "much"},
        {"budget": float("nan")},
    ],
)
def test_settings_that_do_not_fit(data):
    with pytest.raises(ValueError, match=next(iter(data))):
        ServingConfig.read(data)


def test_adapters_that_pages_cannot_express():
    with pytest.raises(ValueError, match=str(NEEDED)):
        check_serving(ServingConfig(policy="first_chunk", first_chunk_tokens=NEEDED), CONFIG)
    triangle = TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16)
    with pytest.raises(UnsupportedModel, match="--engine transformers"):
        streaming(dataclasses.replace(CONFIG, sparse_pattern=triangle))


def test_given_routes_of_a_layer_adapter_agree_within_a_layer():
    layered = dataclasses.replace(CONFIG, granularity="layer")
    agreeing = "1" * HEADS + "0" * HEADS * (LAYERS - 1)
    assert read_route_request({"elastic_routes": agreeing}, layered).routes.sum() == HEADS
    with pytest.raises(ValueError, match="once a layer"):
        read_route_request({"elastic_routes": "10" * (LAYERS * HEADS // 2)}, layered)


@pytest.mark.parametrize("extra", [{}, {"elastic_routes": "sparse"}, {"elastic_routes": "off"}])
def test_report_is_that_of_the_handle(extra):
    model, new = make_model(), 9
    handle, asked = attach_tiny(model), read_route_request(extra, CONFIG)
    handle.set_routes(asked.routes)
    chunk = None if extra else 30
    model.generate(text(100), max_new_tokens=new, do_sample=False, prefill_chunk_size=chunk)
    wanted = handle.report()
    num_sparse = int(wanted["routes"].sum())
    made = report_request(
        CONFIG,
        plan("deferred", 100, **extra),
        prompt_tokens=100,
        new_tokens=new,
        num_sparse=None if asked.is_dense else num_sparse,
        element_bytes=4,
    )
    assert made["kv_bytes_skipped"] > 0 or asked.is_dense
    for key in ("prompt_tokens", "msr", "esr_prefill", "esr_decode", "kv_bytes_read"):
        assert made[key] == pytest.approx(wanted[key][0]), key


def test_what_is_late_happens_once_at_the_end_of_its_step():
    books, done = make_books(), []
    step(books, {"a": (0, 100)}, new=[("a", 100, {})])
    books.do_late(lambda: done.append("now"))
    assert not done
    books.end_step()
    books.end_step()
    assert done == ["now"]


def test_moves_count_who_comes_and_goes():
    books = make_books()
    step(books, {"a": (0, 100)}, new=[("a", 100, {})])
    first = books.moves
    step(books, {"a": (100, 1)})
    assert books.moves == first
    step(books, {}, preempted=["a"])
    assert books.moves == first + 1


def test_requests_without_a_sparse_head_are_dense_from_then_on():
    books = make_books()
    assert step(books, {"a": (0, 100), "b": (0, 100)}, new=[("a", 100, {}), ("b", 100, {})]).deciding
    books.note_counts({"a": 0, "b": 3, "gone": 0})
    assert step(books, {"a": (100, 1)}).has_sparse is False
    assert step(books, {"b": (100, 1)}).has_sparse
