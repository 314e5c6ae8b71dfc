"""The plugin beside vLLM alone: what is measured, and how records grow."""

import json

import pytest
from vllm_engine import count_new, gather_rows, parse_options, read_other_cells, write_model

from elastic_attention.models.checkpoint import load_adapter
from elastic_attention.router.attention_router import FULL, SPARSE


def make_row(way, tokens, requests, ttft, step):
    times = {"ttft_seconds": ttft, "step_seconds": step}
    return {"way": way, "tokens": tokens, "requests": requests} | times


def test_speedups_are_those_over_vllm_alone_in_the_same_run(tmp_path):
    for way, step in (("stock", 0.02), ("elastic", 0.01)):
        (tmp_path / f"{way}.json").write_text(json.dumps([make_row(way, 32768, 8, 9.0, step)]))
    stock, elastic = gather_rows(tmp_path)
    assert (elastic["ttft_speedup"], elastic["decode_speedup"]) == (1, 2) and stock["decode_speedup"] == 1


def test_a_cell_is_always_of_one_run(tmp_path):
    target = tmp_path / "record.json"
    options = parse_options(["--json", str(target), "--add", "--cells", "32768x8"])
    assert read_other_cells(options) == ([], 0.0)
    rows = [make_row(way, tokens, 8, 9.0, 0.02) for way in ("stock", "elastic") for tokens in (32768, 65536)]
    target.write_text(json.dumps({"metrics": {"rows": rows}, "seconds": 60.0}))
    kept, seconds = read_other_cells(options)
    assert seconds == 60 and [(row["way"], row["tokens"]) for row in kept] == [("stock", 65536), ("elastic", 65536)]
    options.ranks = 2
    assert [row["ranks"] for row in read_other_cells(options)[0]] == [1] * 4


def test_every_request_still_answers_when_the_last_prompt_is_read(capsys):
    options = parse_options(["--json", "x", "--new-tokens", "16", "--chunk", "8192"])
    assert count_new(options, 32768, 24) == 16 + 24 * 4 + 1
    with pytest.raises(SystemExit):
        parse_options(["--json", "x", "--new-tokens", "0"])
    assert "--new-tokens 0" in capsys.readouterr().err


def test_routers_make_this_share_of_the_layers_sparse(tmp_path):
    shape = dict(num_hidden_layers=10, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    write_model(tmp_path, shape, 0.7)
    config, routers = load_adapter(tmp_path / "routers")
    biases = [routers[layer].router_mlp[-1].bias for layer in config.routed_layers]
    assert sum(bool(bias[SPARSE] > bias[FULL]) for bias in biases) == 7
