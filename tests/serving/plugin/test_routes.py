"""Routes in the engine are those of the transformers path under the same policy, bit for bit in float32."""

import pytest
import torch
from served_models import LIMIT, Engines, make_params, run_reference
from test_exact import LAYERED, MIXED, draw_requests
from test_smollm2 import ASK, FACTS, KEY, smollm2  # noqa: F401

from elastic_attention.serving.books import RouteBooks

NEW = 6
CHUNKS = dict(enable_prefix_caching=True, max_num_batched_tokens=96, max_num_seqs=8)


@pytest.fixture
def ask(monkeypatch):
    """Tokens and routes (None of a request that stayed dense) of requests to an engine."""
    routes, forget = {}, RouteBooks._forget

    def keep(books, name):
        request = books.requests.get(name)
        if request is not None and request.is_decided:
            routes[name] = books.routes[request.slot].clone() if request.parked is None else request.parked
        forget(books, name)

    monkeypatch.setattr(RouteBooks, "_forget", keep)

    def run(engine, prompts, extras):
        params = [make_params(NEW, **extra) for extra in extras]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        engine.llm_engine.engine_core.engine_core.step()  # the last ones leave the workers
        by_id = {name.partition("-")[0]: found for name, found in routes.items()}  # newer releases add a suffix
        return [(list(o.outputs[0].token_ids), by_id.get(o.request_id.partition("-")[0])) for o in outputs]

    return run


def expect(served, prompt, extra, **policy):
    tokens, facts = run_reference(served, prompt, NEW, **policy, **extra)
    return tokens, served.handle.report()["routes"][0] if facts["routed"] and facts["msr"] else None


def check(results, expected):
    assert sum(routes is not None and bool(routes.any()) for _, routes in expected) > len(expected) // 3
    for (tokens, routes), (wanted, wanted_routes) in zip(results, expected, strict=True):
        assert tokens == wanted
        if wanted_routes is None:
            assert routes is None or not routes.any()
        else:
            assert torch.equal(routes, wanted_routes)


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("policy", ["deferred", "first_chunk", "probe"])
def test_a_tiny_model(engines, served, layered, ask, policy, granularity):
    served, mixed = (served, MIXED) if granularity == "head" else (layered, LAYERED)
    serving = dict(routers=str(served.routers), policy=policy, first_chunk_tokens=128)
    engine = engines(serving=serving, max_model_len=LIMIT, **CHUNKS)
    prompts, extras = draw_requests(32, seed=41, mixed=mixed)
    check(
        ask(engine, prompts, extras),
        [expect(served, p, e, policy=policy) for p, e in zip(prompts, extras, strict=True)],
    )


@pytest.mark.model
def test_a_trained_model(smollm2, ask):  # noqa: F811
    served, tokenizer = smollm2
    sizes = [(n % 7 * 11, 5 + n % 5 * 17) for n in range(32)]
    prompts = [tokenizer(FACTS * n + KEY + FACTS * m + ASK).input_ids for n, m in sizes]
    kinds = [{}, {}, {"elastic_budget": 1.0}, {"elastic_routes": "off"}, {"elastic_routes": "sparse"}]
    extras = [kinds[n % len(kinds)] for n in range(len(prompts))]
    expected = [expect(served, p, e) for p, e in zip(prompts, extras, strict=True)]
    engines = Engines(served)
    for options in (
        dict(enable_prefix_caching=False),
        dict(enable_prefix_caching=True, max_num_batched_tokens=512, max_num_seqs=8),
    ):
        check(ask(engines(serving={"routers": None}, max_model_len=2048, **options), prompts, extras), expected)
    engines.close()
