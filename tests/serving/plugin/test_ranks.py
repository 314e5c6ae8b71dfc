"""Ranks, each with its own heads or with a copy of one, say what one rank says."""

import pytest
from ranks import ask_ranks, join_ranks
from served_models import HEADS, LIMIT, make_params, make_prompts, read_routes, run_engine

LENGTHS, NEW = [40, 150, 300, 97], 12


@pytest.mark.parametrize(("granularity", "size"), [("head", 2), ("layer", 2), ("head", 2 * HEADS)])
def test_ranks(engines, served, layered, granularity, size):
    served = served if granularity == "head" else layered
    engines.close()
    engine = engines(serving={"routers": str(served.routers)})
    alone = run_engine(engine, make_prompts(LENGTHS), make_params(NEW))
    (routes,) = read_routes(engine, len(LENGTHS))
    engines.close()
    together, ranks = ask_ranks(served, LENGTHS, NEW, tensor_parallel_size=size, dtype="float32", max_model_len=LIMIT)
    assert together == [list(result) for result in alone]
    assert join_ranks(ranks, HEADS) == routes and any(any(map(any, request)) for request in routes)
    if granularity == "layer":
        assert ranks[0] == ranks[1]
    assert {len(layer) for rank in ranks for request in rank for layer in request} == {max(1, HEADS // size)}
