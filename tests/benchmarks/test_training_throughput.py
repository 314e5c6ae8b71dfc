import pytest
import torch
import training_loads
import training_rates
import training_throughput
from model_bench import MODELS

from elastic_attention.evaluation.oracle import OracleMismatch
from elastic_attention.records import read_record

TINY = ["--model", "tiny", "--device", "cpu", "--tokens", "1024", "--steps", "1", "--warm-up", "0"]


def test_record_of_both_ways(tmp_path):
    memories = ["--memory", "layers", "attention", "all"]
    training_throughput.main([*TINY, "--loads", "mixed", *memories, "--json", str(tmp_path / "one.json")])
    metrics = read_record(tmp_path / "one.json")["metrics"]
    cells = [(row["way"], row["memory"]) for row in metrics["rows"]]
    assert cells == [("ours", "layers"), ("ours", "attention"), ("ours", "all"), ("reference", "layers")]
    losses = [row["loss"] for row in metrics["rows"]]
    # Float32 here: the reference's two passes and ours give the same loss.
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    assert max(row["scaling_efficiency"] for row in metrics["rows"]) == 1.0
    assert {row["packs_per_step"] for row in metrics["hours"]} == {24, 48}
    assert not metrics["skipped"]

    more = [*TINY, "--loads", "single", "--ways", "ours", "--layers", "1", "--add", str(tmp_path / "one.json")]
    training_throughput.main([*more, "--json", str(tmp_path / "two.json")])
    rows = read_record(tmp_path / "two.json")["metrics"]["rows"]
    assert [(row["load"], row["layers"]) for row in rows] == [("mixed", 3)] * 4 + [("single", 1)]
    assert rows[-1]["samples"] == [1024]


def test_layers_that_keep_everything_and_fast_gradients_are_cells(tmp_path):
    rows = []
    for whole in ("0", "2"):
        cells = ["--loads", "mixed", "--ways", "ours", "--whole-layers", whole, "--fast-gradients", "0", "1"]
        training_throughput.main([*TINY, *cells, "--json", str(tmp_path / "two.json")])
        rows += read_record(tmp_path / "two.json")["metrics"]["rows"]
    assert [(row["whole_layers"], row["fast_gradients"]) for row in rows] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert len({row["loss"] for row in rows}) == 1
    assert rows[0]["recomputed_flops_per_pack"] > rows[2]["recomputed_flops_per_pack"]


def test_cells_that_disagree_stop_the_run():
    cell = dict.fromkeys(training_rates.CELL, 1) | {"load": "mixed"}
    training_throughput.check_losses([cell | {"loss": 2.0}, cell | {"loss": 2.01}])
    training_throughput.check_losses([cell | {"loss": 2.0}, cell | {"loss": 4.0, "gpus": 2}])
    with pytest.raises(OracleMismatch, match="disagree"):
        training_throughput.check_losses([cell | {"loss": 2.0}, cell | {"loss": 2.1}])


def test_time_that_is_up_is_recorded_as_skipped(tmp_path):
    training_throughput.main([*TINY, "--ways", "ours", "--max-seconds", "0", "--json", str(tmp_path / "late.json")])
    metrics = read_record(tmp_path / "late.json")["metrics"]
    assert not metrics["rows"]
    assert [(row["load"], row["reason"]) for row in metrics["skipped"]] == [
        ("mixed", "the time is up"),
        ("single", "the time is up"),
    ]

    # What a later run adds takes the place of what was skipped.
    more = [*TINY, "--ways", "ours", "--loads", "mixed", "--memory", "layers", "attention", "--layers", "3"]
    training_throughput.main([*more, "--add", str(tmp_path / "late.json"), "--json", str(tmp_path / "whole.json")])
    metrics = read_record(tmp_path / "whole.json")["metrics"]
    assert [row["memory"] for row in metrics["rows"]] == ["layers", "attention"]
    assert [row["load"] for row in metrics["skipped"]] == ["single"]


def test_flops_of_one_layer_by_hand():
    model = training_throughput.build_model("tiny", torch.device("cpu"), layers=1)
    n, d, heads, kv, width, inner, words = 1000, 16, 6, 2, 48, 64, MODELS["tiny"][1]["vocab_size"]
    weights = width * d * (heads + 2 * kv) + heads * d * width + 3 * width * inner
    linear, last = 2 * weights * n, 2 * width * words * training_loads.RESPONSE_TOKENS
    pairs = n * (n + 1) // 2
    needed, again = training_rates.count_flops(model, [n], 0.0, "all", 0)
    assert needed == 2 * linear + 2 * last + (4 + 8) * d * heads * pairs
    assert again == 2 * d * heads * pairs + last
    _, layers = training_rates.count_flops(model, [n], 0.0, "layers", 0)
    _, attention = training_rates.count_flops(model, [n], 0.0, "attention", 0)
    assert layers - attention == 4 * d * heads * pairs
    assert attention - again == linear - 2 * width * inner * n
    assert training_rates.count_flops(model, [n], 0.0, "layers", 1) == (needed, again)
    sparse, _ = training_rates.count_flops(model, [n], 1.0, "all", 0)
    assert 4 * d * heads * pairs < sparse - 2 * linear - 2 * last < 12 * d * heads * pairs


def test_the_mixed_pack_costs_the_mean_of_all():
    pack = training_loads.draw_pack("mixed", 65_536)
    packs = training_loads.plan_lengths(65_536)
    costs = [sum(n * n for n in [*one[:-1], 65_536 - sum(one[:-1])]) for one in packs]
    assert sum(pack) == 65_536 and min(pack) >= 8_192
    assert sum(n * n for n in pack) == pytest.approx(sum(costs) / len(costs), rel=0.01)


def test_hours_of_the_paper():
    row = dict.fromkeys(training_rates.CELL) | {"model": "qwen3-8b", "layers": 36, "load": "mixed", "gpus": 8}
    row |= {"tokens": 65_536, "tokens_per_second_per_gpu": 65_536 / 10}  # ten seconds a pack
    one, two = training_rates.estimate_hours([row])
    assert one["gpu_hours"] == pytest.approx(20) and one["hours"] == pytest.approx(2.5)
    assert two["gpu_hours"] == pytest.approx(40) and two["paper_gpu_hours"] == 96
    assert not training_rates.estimate_hours([row | {"layers": 4}])
