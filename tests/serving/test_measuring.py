"""The load that `elastic-attn bench serve` puts on a server, and the numbers it takes."""

import pytest
from served_tokenizer import NAME

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.serving.load import KINDS, ServerClient, Timing, draw_prompts, measure_load
from elastic_attention.tasks import load_corpora


def test_prompts_are_long_and_of_mixed_kinds_and_never_the_same():
    prompts = draw_prompts(load_corpora(), count=len(KINDS) + 1, tokens=600, seed=3)
    assert len(set(prompts)) == len(prompts) and min(map(len, prompts)) > 1200
    assert prompts == draw_prompts(load_corpora(), count=len(KINDS) + 1, tokens=600, seed=3)


def test_rows_of_both_ways(server):
    address, _ = server
    client = ServerClient(address)
    assert client.model == NAME
    prompts = ["The boat is red and the sail is white. " * n for n in (4, 6, 8)]
    rows = {way: measure_load(client, prompts, concurrency=2, new_tokens=5, way=way) for way in ("elastic", "dense")}
    for row in rows.values():
        assert row["n"] == 3 and row["concurrency"] == 2
        assert row["prompt_tokens"] == sum(map(len, prompts)) / 3
        assert 0 < row["ttft_median_ms"] <= row["ttft_p95_ms"] and row["tpot_median_ms"] > 0
        assert row["new_tokens_per_second"] == pytest.approx(15 / row["seconds"])
    assert rows["dense"]["msr"] == 0 < rows["elastic"]["msr"]


def test_one_answer(server):
    timing = ServerClient(server[0]).ask("The boat is red. " * 10, new_tokens=6, way="elastic")
    assert timing == Timing(prompt_tokens=170, new_tokens=6, first=timing.first, last=timing.last)
    assert 0 < timing.first < timing.last


def test_refusals_say_what_the_server_says(server):
    with pytest.raises(ElasticAttentionError, match="400.*1024"):
        ServerClient(server[0]).ask("a" * 2000, new_tokens=2, way="dense")
    with pytest.raises(ElasticAttentionError, match="127.0.0.1:1 is no OpenAI-compatible server"):
        ServerClient("http://127.0.0.1:1")
