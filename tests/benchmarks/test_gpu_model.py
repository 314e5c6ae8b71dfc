"""The model benchmark on a tiny model: rows, bounds, the filled cache, the search for the largest batch."""

import gpu_model
import model_decode
import pytest
import torch

from elastic_attention.patterns import build_pattern
from elastic_attention.records import read_record

OPTIONS = ["--device", "cpu", "--model", "tiny", "--copy-bytes", "100000", "--repeats", "1", "--steps", "2"]
OPTIONS += ["--warm-tokens", "64"]
CELLS = ["--lengths", "4096", "--decode-cells", "256/2", "--batch-tokens", "256", "--ratios", "0", ".5", "1"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.json"
    assert gpu_model.main([*OPTIONS, *CELLS, "--router-ratio", ".5", "--json", str(path)]) == 0
    return read_record(path)


def test_prefill_rows(record):
    rows = record["metrics"]["rows"]
    assert [(row["kernel"], row["msr"]) for row in rows] == [
        ("sdpa", 0.0),
        ("elastic", 0.0),
        ("elastic", 0.5),
        ("elastic", 1.0),
        ("router", 0.5),
    ]
    dense = rows[0]
    assert 0 < dense["attention_seconds"] < dense["seconds"] and dense["kv_ratio"] == 1 and dense["speedup"] == 1
    other = dense["seconds"] - dense["attention_seconds"]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(4096 / row["seconds"])
        bound = other + dense["attention_seconds"] * row["visited_fraction"]
        assert row["bound_share"] == pytest.approx(bound / row["seconds"])
    visited, kept = [row["visited_fraction"] for row in rows[1:4]], [row["kv_ratio"] for row in rows[1:4]]
    assert visited[0] == 1 and visited[1] == pytest.approx((1 + visited[2]) / 2)
    held = 64 + 512  # the tiny model's sink and window for 4K tokens
    assert kept == pytest.approx([1, (1 + held / 4096) / 2, held / 4096])


def test_decode_rows(record):
    row = record["metrics"]["decode"][0]
    assert (row["tokens"], row["batch"], row["kernel"]) == (256, 2, "sdpa")
    assert row["kv_bytes"] == 2 * 256 * 3 * 2 * 16 * 2 * 4
    assert row["tokens_per_second"] == pytest.approx(2 / row["seconds"])
    assert {row["name"] for row in record["metrics"]["missing"]} >= {"fa3", "largest batch", "elastic"}
    assert record["model"] == "tiny"


def test_late_runs_are_listed(tmp_path):
    path = tmp_path / "model.json"
    options = [*OPTIONS, "--lengths", "256", "--decode-cells", "256/2", "--batch-tokens", "256", "--max-seconds", "0"]
    assert gpu_model.main([*options, "--json", str(path)]) == 0
    assert {row["section"] for row in read_record(path)["metrics"]["skipped"]} == {"prefill", "decode"}


def test_a_filled_cache_decodes_like_its_last_token():
    """The step's logits are those of a prefill whose last token is the step's token."""
    model = gpu_model.build_model("tiny", torch.device("cpu"), 64)
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
        model = gpu_model.build_model(name, torch.device("meta"), 1024)
    billions = {"qwen3-8b": 8.19, "llama-3.1-8b": 8.03}[name]
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 12), (0.7, 17), (1.0, 24)])
def test_routes_have_the_ratio(ratio, count):
    routes = model_decode.draw_routes(ratio, 6, 4)
    assert routes.shape == (6, 4) and int(routes.sum()) == count
    assert torch.equal(routes, model_decode.draw_routes(ratio, 6, 4))


def test_visited_fraction_counts_pairs():
    config = gpu_model.ElasticConfig.for_model(gpu_model.build_model("tiny", torch.device("cpu"), 4096)).sparse_pattern
    pattern, routes = build_pattern(config), torch.tensor([[True, False]])
    sparse = pattern.count_pairs(0, 2000) / (2000 * 2001 // 2)
    assert gpu_model.visited_fraction(routes, pattern, 2000) == pytest.approx((1 + sparse) / 2)


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
    model = gpu_model.build_model("tiny", torch.device("cpu"), 4096)
    handle = gpu_model.attach(model, gpu_model.ElasticConfig.for_model(model))
    routes = model_decode.draw_routes(0.5, 3, 2)
    cache = model_decode.fill_cache(handle, routes, batch=2, tokens=2000)
    held = build_pattern(handle.config.sparse_pattern).count_held(2000)
    for layer, given in zip(cache.layers, routes, strict=True):
        assert layer.get_seq_length() == 2000 and layer.store.lengths == [2000, 2000]
        stored = [sorted(layer.store.stored_lengths(group)) for group in layer.store.groups]
        assert stored == [[2000] * 2 * int((~given).sum()), [held] * 2 * int(given.sum())]
    bench = model_decode.ModelBench(
        options=None,
        device=torch.device("cpu"),
        model=model,
        clock=model_decode.Clock(device=torch.device("cpu")),
        dense=[],
    )
    row_bytes = 2 * 16 * 4
    assert model_decode.count_kv_bytes(bench, handle, routes, 2000) == 3 * row_bytes * (held + 2000)
