import pytest
import torch
from rank_jobs import exchange_heads, make_heads

from elastic_attention import RecipeError
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.parallel.ranks import Ranks, join_ranks
from elastic_attention.training.parallel.ulysses import check_heads, cut_evenly

TOKENS = 7  # odd: one process holds a token more


@pytest.mark.parametrize("num_kv_heads", [2, 1], ids=["a KV head each", "one KV head for both"])
def test_heads_of_all_tokens_and_back(pair, tmp_path, num_kv_heads):
    ranks = pair.run(exchange_heads, tmp_path, 4, num_kv_heads, TOKENS)
    q, k, _ = make_heads(4, num_kv_heads, TOKENS)
    assert [r["own"] for r in ranks] == [[0, 4], [4, 7]]
    for i, rank in enumerate(ranks):
        own = i if num_kv_heads == 2 else 0
        assert rank["q"] == q[0, 2 * i : 2 * i + 2].tolist()
        assert rank["k"] == k[0, own : own + 1].tolist()
        assert rank["routes"] == [[own]]
        assert rank["is_back"] and rank["is_query_gradient"]
        # A KV head that both use gets the gradient of both.
        assert rank["gradients"] == ([[2.0], [3.0]] if num_kv_heads == 2 else [[4.0], [6.0]])
        assert rank["taken"] == [[0.0, 6.0], [3.0, 4.0]]
    # Both copies of a taken row were used, with the factors 1 and 2.
    assert [r["taken_gradient"] for r in ranks] == [[3.0, 0.0, 0.0, 3.0], [3.0, 0.0, 3.0]]


def test_cuts_differ_by_one_token_at_most():
    assert cut_evenly(10, 4) == [3, 3, 2, 2]
    assert cut_evenly(2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(("q", "kv", "size"), [(32, 8, 8), (32, 8, 16), (14, 2, 2), (9, 3, 3)])
def test_sizes_that_fit(q, kv, size):
    check_heads(q, kv, size)


def test_a_size_that_does_not_fit_is_refused_with_the_choices():
    with pytest.raises(RecipeError, match=r"sequence=4 .* 2 KV heads and 14 query heads; use one of \[1, 2, 14\]"):
        check_heads(14, 2, 4)


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
