import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_jobs import exchange_heads, make_heads
from tiny_runs import make_recipe, parts

from elastic_attention import RecipeError
from elastic_attention.models.handle import find_handle
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.parallel.engine import ParallelEngine
from elastic_attention.training.parallel.heads import deal_heads
from elastic_attention.training.parallel.ranks import Ranks, join_ranks
from elastic_attention.training.parallel.ulysses import check_heads, cut_evenly

TOKENS = 7  # odd: one process holds a token more


@pytest.mark.parametrize(
    ("routes", "own"),
    [
        pytest.param([0, 1], ([0], [1]), id="a KV head each"),
        pytest.param([1], ([0], [0]), id="one KV head for both"),
        pytest.param([1, 0, 1, 0], ([1, 2], [3, 0]), id="a full and a sparse one each"),
    ],
)
def test_heads_of_all_tokens_and_back(pair, tmp_path, routes, own):
    num_kv_heads, num_q_heads = len(routes), 4
    group_size = num_q_heads // num_kv_heads
    ranks = pair.run(exchange_heads, tmp_path, num_q_heads, num_kv_heads, TOKENS, [routes, routes])
    q, k, _ = make_heads(num_q_heads, num_kv_heads, TOKENS)
    assert [r["own"] for r in ranks] == [[0, 4], [4, 7]]
    for i, rank in enumerate(ranks):
        queries = (
            [h * group_size + j for h in own[i] for j in range(group_size)] if num_kv_heads > 1 else [2 * i, 2 * i + 1]
        )
        assert rank["q"] == q[0, queries].tolist()
        assert rank["k"] == k[0, own[i]].tolist()
        assert rank["routes"] == [[routes[h] for h in own[i]]] * 2
        assert rank["is_back"] and rank["is_query_gradient"]
        # A KV head that both use gets the gradient of both.
        assert rank["gradients"] == ([[2.0], [3.0]] if num_kv_heads > 1 else [[4.0], [6.0]])
        assert rank["taken"] == [[0.0, 6.0], [3.0, 4.0]]
    # Both copies of a taken row were used, with the factors 1 and 2.
    assert [r["taken_gradient"] for r in ranks] == [[3.0, 0.0, 0.0, 3.0], [3.0, 0.0, 3.0]]


@given(st.data(), st.sampled_from([2, 3, 4]), st.integers(2, 4))
def test_dealt_heads_cost_alike(data, size, turns):
    lengths = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=3))
    routes = torch.tensor(
        [data.draw(st.lists(st.booleans(), min_size=size * turns, max_size=size * turns)) for _ in lengths]
    )
    heads = deal_heads(routes, torch.tensor(lengths), size)
    assert sorted(heads.order.tolist()) == list(range(size * turns))
    cost = (~routes).double().T @ torch.tensor(lengths, dtype=torch.float64) ** 2
    shares = cost[heads.order].view(size, turns).sum(1)
    # What stands between two processes after a turn is at most the costliest head of that turn.
    assert shares.max() - shares.min() <= cost.max()
    x = torch.randn(2, 3 * size * turns, 1)
    assert torch.equal(heads.restore(heads.sort(x)), x)


def test_cuts_differ_by_one_token_at_most():
    assert cut_evenly(10, 4) == [3, 3, 2, 2]
    assert cut_evenly(2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(("q", "kv", "size"), [(32, 8, 8), (32, 8, 16), (14, 2, 2), (9, 3, 3)])
def test_sizes_that_fit(q, kv, size):
    check_heads(q, kv, size)


def test_a_size_that_does_not_fit_is_refused_with_the_choices():
    with pytest.raises(RecipeError, match=r"sequence=4 .* 2 KV heads and 14 query heads; use one of \[1, 2, 14\]"):
        check_heads(14, 2, 4)


def test_a_model_that_cannot_be_shared_is_given_back(tmp_path):
    model = parts()["model"]
    with pytest.raises(RecipeError, match="sequence=5"):
        ParallelEngine(make_recipe(tmp_path), model, Ranks(world_size=5, sequence_size=5))
    assert find_handle(model) is None and all(parameter.requires_grad for parameter in model.parameters())


def test_alone_there_is_nobody_to_wait_for():
    with join_ranks(ParallelConfig(), torch.device("cpu")) as ranks:
        assert ranks == Ranks()
        ranks.meet()
        assert ranks.agree(True) and ranks.collect(3) == [3]
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1]


def test_more_sharers_than_processes():
    config = ParallelConfig(sequence=2)
    with (
        pytest.raises(RecipeError, match="sequence=2 does not divide the 1 processes"),
        join_ranks(config, torch.device("cpu")),
    ):
        pass


@pytest.mark.parametrize("values", [{"sequence": 0}, {"weights": -1}, {"timeout_seconds": 0.0}])
def test_numbers_out_of_range(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ParallelConfig(**values)
