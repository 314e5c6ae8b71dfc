"""The model benchmark on a tiny model: rows, bounds, the filled cache, the search for the largest batch."""

import gpu_model
import model_bench
import model_decode
import model_prefill
import pytest
import torch

from elastic_attention import ElasticConfig, attach
from elastic_attention.config import StreamingConfig, XAttentionConfig
from elastic_attention.kernels.xattention import choose_blocks
from elastic_attention.patterns import build_pattern
from elastic_attention.records import read_record

OPTIONS = ["--device", "cpu", "--model", "tiny", "--copy-bytes", "100000", "--repeats", "1", "--steps", "2"]
OPTIONS += ["--warm-tokens", "64"]
CELLS = ["--lengths", "1024", "--decode-cells", "256/2", "--batch-tokens", "256", "--ratios", "0", ".5", "1"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.json"
    options = [*OPTIONS, *CELLS, "--densities", ".15", "--pair-ratios", ".5"]
    assert gpu_model.main([*options, "--json", str(path)]) == 0
    return read_record(path)


def test_prefill_rows(record):
    rows = record["metrics"]["rows"]
    assert [(row["kernel"], row["pair"], row["msr"], row["density"]) for row in rows] == [
        ("sdpa", None, 0.0, None),
        ("elastic", "fa-ssa", 0.0, None),
        ("elastic", "fa-ssa", 0.5, None),
        ("elastic", "fa-ssa", 1.0, None),
        ("elastic", "fa-xa", 0.5, 0.15),
        ("elastic", "xa-ssa", 0.5, 0.15),
        ("elastic", "fa-ta", 0.5, None),
    ]
    dense = rows[0]
    assert 0 < dense["attention_seconds"] < dense["seconds"] and dense["kv_ratio"] == 1 and dense["speedup"] == 1
    other = dense["seconds"] - dense["attention_seconds"]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1024 / row["seconds"])
        bound = other + dense["attention_seconds"] * row["visited_fraction"]
        assert row["bound_share"] == pytest.approx(bound / row["seconds"])
        assert row["speedup"] == pytest.approx(dense["seconds"] / row["seconds"]) and row["run"] == 0
    visited, kept = [row["visited_fraction"] for row in rows[1:4]], [row["kv_ratio"] for row in rows[1:]]
    assert visited[0] == 1 and visited[1] == pytest.approx((1 + visited[2]) / 2)
    held = 64 + 512  # the tiny model's sink and window for its 4K tokens
    half = (1 + held / 1024) / 2
    assert kept == pytest.approx([1, half, held / 1024, 1, half, half])  # XA may want every key again


def test_decode_rows(record):
    row = record["metrics"]["decode"][0]
    assert (row["tokens"], row["batch"], row["kernel"]) == (256, 2, "sdpa")
    assert row["kv_bytes"] == 2 * 256 * 3 * 2 * 16 * 2 * 4
    assert row["tokens_per_second"] == pytest.approx(2 / row["seconds"])
    rate = record["metrics"]["ceilings"][0]["terabytes_per_second"] * 1e12
    assert row["bound_seconds"] == pytest.approx(row["needed_bytes"] / rate) and row["needed_bytes"] > row["kv_bytes"]
    assert {row["name"] for row in record["metrics"]["missing"]} >= {"fa3", "largest batch", "elastic"}
    assert record["model"] == "tiny"


def test_a_second_call_goes_on_where_the_record_stands(tmp_path, monkeypatch):
    path = tmp_path / "model.json"
    cells = ["--lengths", "256", "--decode-cells", "256/2", "--batch-tokens", "256", "--ratios", "0.5", "--pairs"]
    options = [*OPTIONS, *cells, "fa-ssa", "--json", str(path), "--add"]
    assert gpu_model.main([*options, "--max-seconds", "0"]) == 0
    late = read_record(path)["metrics"]
    assert {row["section"] for row in late["skipped"]} == {"prefill", "decode"} and late["rows"] == []
    assert gpu_model.main([*options, "--only", "prefill", "--dense"]) == 0
    assert gpu_model.main(options) == 0
    metrics = read_record(path)["metrics"]
    assert [(row["kernel"], row["run"]) for row in metrics["rows"]] == [("elastic", 1), ("sdpa", 2)]
    # The row of the earlier run stands beside the dense run of the later one.
    assert metrics["rows"][0]["dense_seconds"] == metrics["rows"][1]["seconds"]
    assert metrics["skipped"] == [] and len(metrics["runs"]) == 3
    monkeypatch.setattr(model_prefill, "_measure_run", lambda *a, **k: pytest.fail("it is in the record"))
    assert gpu_model.main(options) == 0


def test_a_filled_cache_decodes_like_its_last_token():
    """The step's logits are those of a prefill whose last token is the step's token."""
    model = model_bench.build_model("tiny", torch.device("cpu"))
    ids = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=True)
        layers = [
            model_decode.FilledLayer(layer.keys.clone(), layer.values.clone()) for layer in out.past_key_values.layers
        ]
        for layer in layers:
            layer.keys[:, :, -1], layer.values[:, :, -1] = torch.nan, torch.nan  # the step's token writes them anew
        step = model(
            input_ids=ids[:, -1:],
            position_ids=torch.tensor([[19]]),
            past_key_values=model_decode.Cache(layers=layers),
            use_cache=True,
        )
    torch.testing.assert_close(step.logits[:, -1], out.logits[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3-8b", "llama-3.1-8b"])
def test_models_have_the_published_sizes(name):
    with torch.device("meta"):
        model = model_bench.build_model(name, torch.device("meta"))
    billions = {"qwen3-8b": 8.19, "llama-3.1-8b": 8.03}[name]
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 12), (0.7, 17), (1.0, 24)])
def test_routes_have_the_ratio(ratio, count):
    routes = model_bench.draw_routes(ratio, 6, 4)
    assert routes.shape == (6, 4) and int(routes.sum()) == count
    assert torch.equal(routes, model_bench.draw_routes(ratio, 6, 4))


@pytest.mark.parametrize(("pair", "density"), [("fa-ssa", None), ("fa-xa", 0.3), ("xa-ssa", 0.15), ("fa-ta", None)])
def test_visited_fraction_counts_pairs(pair, density):
    """Against the masks that the two kinds of heads stand for."""
    tokens, routes = 1000, torch.tensor([[True, False, True]])
    config = model_bench.make_config(model_bench.build_model("tiny", torch.device("cpu")), pair, density)
    positions = torch.arange(tokens)
    causal = positions[None] <= positions[:, None]
    q = k = torch.randn(1, 1, tokens, 16, generator=torch.Generator().manual_seed(0))

    def count(side):
        if side == "full":
            return int(causal.sum())
        if isinstance(side, XAttentionConfig):
            lists = choose_blocks(q, k, side, 0.25)
            blocks = lists.to_mask(torch.zeros(1, dtype=torch.long), -(-tokens // 64))[0, 0]
            return int((blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)[:tokens, :tokens] & causal).sum())
        prompt = () if isinstance(side, StreamingConfig) else (tokens,)
        return int(build_pattern(side).is_visible(positions[:, None], positions[None], *prompt).sum())

    wanted = 2 * count(config.sparse_pattern) + count(config.full_pattern)
    found = model_prefill.visited_fraction(routes, config, tokens)
    assert found == pytest.approx(wanted / (3 * int(causal.sum())))


def test_routers_run_and_the_given_routes_are_taken():
    model = model_bench.build_model("tiny", torch.device("cpu"))
    bench = model_bench.ModelBench(
        options=gpu_model.parse_options(["--model", "tiny"]),
        device=torch.device("cpu"),
        model=model,
        clock=model_bench.Clock(device=torch.device("cpu")),
        dense=[],
    )
    routes, asked = model_bench.draw_routes(0.5, 3, 2), []
    with bench.attached() as handle, torch.no_grad():
        decide = handle.decide
        handle.decide = lambda index, pooled: asked.append(index) or decide(index, pooled)
        model_prefill.give_routes(handle, routes)
        model(torch.zeros(1, 700, dtype=torch.long))
        assert asked == [0, 1, 2] and torch.equal(handle.report()["routes"][0], routes)


@pytest.mark.parametrize(("limit", "guess"), [(6, 6), (6, 5), (6, 9), (1, 4), (0, 2), (3, 0)])
def test_largest_batch(limit, guess):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    assert model_decode.find_largest_batch(fits, guess) == limit
    assert len(tried) <= abs(limit - guess) + 2


def test_a_filled_elastic_cache_holds_what_its_routes_say():
    """Full rows keep every token, sparse rows the sink and the window; the bound counts the same bytes."""
    model = model_bench.build_model("tiny", torch.device("cpu"))
    handle = attach(model, ElasticConfig.for_model(model))
    routes = model_bench.draw_routes(0.5, 3, 2)
    cache = model_decode.fill_cache(handle, routes, batch=2, tokens=2000)
    held = build_pattern(handle.config.sparse_pattern).count_held(2000)
    for layer, given in zip(cache.layers, routes, strict=True):
        assert layer.get_seq_length() == 2000 and layer.store.lengths == [2000, 2000]
        stored = [sorted(layer.store.stored_lengths(group)) for group in layer.store.groups]
        assert stored == [[2000] * 2 * int((~given).sum()), [held] * 2 * int(given.sum())]
    bench = model_bench.ModelBench(
        options=None,
        device=torch.device("cpu"),
        model=model,
        clock=model_bench.Clock(device=torch.device("cpu")),
        dense=[],
    )
    row_bytes = 2 * 16 * 4
    assert model_decode.count_kv_bytes(bench, handle, routes, 2000) == 3 * row_bytes * (held + 2000)
