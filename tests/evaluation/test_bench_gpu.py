"""Times beside peers: what is counted, who is compared with whom, and what happens to a kernel that is wrong."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import bench_gpu
from elastic_attention.evaluation.bench_gpu import Kernel, measure_prefill, own_kernel, torch_kernels
from elastic_attention.evaluation.shapes import AttentionShape
from elastic_attention.evaluation.timing import Timing, time_graphs, time_interleaved
from oracles import visible_mask

PATTERN = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
SHAPE = AttentionShape(tokens=160, num_q_heads=4, num_kv_heads=2, head_dim=16)
CPU = torch.device("cpu")


def measure(kernels, ratios=(0.0, 0.5, 1.0), **options):
    return measure_prefill(
        SHAPE, kernels, ratios, pattern=PATTERN, device=CPU, dtype=torch.float32, repeats=2, **options
    )


def test_computed_blocks_count_the_diagonal_half():
    routes = torch.tensor([[True, False]])
    blocks = 0.0
    for mask in (visible_mask(PATTERN, 160), torch.ones(160, 160).tril().bool()):
        touched = mask.view(10, 16, 10, 16).any(3).any(1)
        blocks += float(touched.sum()) - 0.5 * 10
    assert SHAPE.count_flops(routes, PATTERN) == 4 * 16 * 2 * blocks * 16 * 16


def test_visited_fraction_is_of_pairs():
    routes = torch.tensor([[True, False]])
    sparse = float(visible_mask(PATTERN, 160).sum()) / (160 * 161 / 2)
    assert SHAPE.visited_fraction(routes, PATTERN) == pytest.approx((1 + sparse) / 2)


@pytest.mark.parametrize(
    ("ratio", "batch", "count"), [(0.3, 1, 2), (0.7, 1, 6), (0.7, 4, 22), (0.0, 2, 0), (1.0, 2, 16)]
)
def test_sparse_heads_are_spread(ratio, batch, count):
    routes = AttentionShape(tokens=1, batch=batch).spread_sparse(ratio)
    assert routes.shape == (batch, 8) and int(routes.sum()) == count
    assert routes.sum(1).max() - routes.sum(1).min() <= 1


def test_rows_stand_beside_the_best_dense_kernel():
    slow = Kernel(name="slow", prepare=lambda routes: _slow(torch_kernels(CPU)[0].prepare(routes)), is_dense=True)
    rows, failures = measure([own_kernel("cpu", PATTERN), *torch_kernels(CPU), slow])
    assert failures == []
    assert [(row["kernel"], row["msr"]) for row in rows] == [
        ("cpu", 0.0),
        ("sdpa", 0.0),
        ("slow", 0.0),
        ("cpu", 0.5),
        ("cpu", 1.0),
    ]
    best = rows[1]["milliseconds"]
    for row in rows:
        assert row["best_dense"] == "sdpa" and row["dense_milliseconds"] == best
        assert row["ratio"] == pytest.approx(row["milliseconds"] / (row["visited_fraction"] * best))
        assert row["teraflops"] > 0 and row["low"] <= row["milliseconds"] <= row["high"]


def _slow(attend):
    def call(q, k, v):
        for _ in range(20):
            out = attend(q, k, v)
        return out

    return call


@pytest.mark.parametrize("fault", [0.1, float("nan")])
def test_a_wrong_peer_is_not_timed(fault):
    wrong = Kernel(
        name="wrong", prepare=lambda routes: lambda q, k, v: own_kernel("cpu", PATTERN).prepare(routes)(q, k, v) + fault
    )
    rows, failures = measure([own_kernel("cpu", PATTERN), wrong])
    assert {row["kernel"] for row in rows} == {"cpu"}
    assert {row["kernel"] for row in failures} == {"wrong"} and "differs from cpu" in failures[0]["reason"]


def test_a_kernel_that_fails_is_named_with_its_reason():
    def refuse(routes):
        raise ValueError("no such routes")

    rows, failures = measure([Kernel(name="broken", prepare=refuse), *torch_kernels(CPU)])
    assert [row["kernel"] for row in rows] == ["sdpa"]
    assert [row["msr"] for row in failures] == [0.0, 0.5, 1.0]
    assert failures[0]["reason"] == "ValueError: no such routes"


def test_other_rules_are_timed_but_not_compared():
    other = Kernel(name="other", prepare=lambda routes: lambda q, k, v: torch.zeros_like(q), is_exact=False)
    rows, failures = measure([own_kernel("cpu", PATTERN), other], ratios=(1.0,))
    assert [row["kernel"] for row in rows] == ["cpu", "other"] and not failures


def test_interleaved_runs_take_turns(monkeypatch):
    calls = []
    runs = {name: lambda i, name=name: calls.append((i, name)) for name in "abc"}
    timings = time_interleaved(runs, device=CPU, repeats=4)
    assert [sorted(name for _, name in calls[3 * i : 3 * i + 3]) for i in range(4)] == [["a", "b", "c"]] * 4
    assert [i for i, _ in calls] == [i for i in range(4) for _ in range(3)]
    assert len({tuple(name for _, name in calls[3 * i : 3 * i + 3]) for i in range(4)}) > 1, "the order changes"
    assert all(timing.repeats == 4 for timing in timings.values())


def test_time_limit_leaves_three_repeats():
    assert time_interleaved({"a": lambda i: i}, device=CPU, repeats=9, max_seconds=0.0)["a"].repeats == 3


def test_series_are_divided_by_their_calls():
    seen = []
    timing = time_graphs({"a": seen.append}, device=CPU, repeats=2, calls=5)["a"]
    assert seen == [0, 1, 2, 3, 4] * 2 and isinstance(timing, Timing)


def test_samples_see_every_part(monkeypatch):
    out = torch.arange(2000.0).view(1, 1, 2000, 1)
    picked = bench_gpu._pick_rows(out).flatten()
    assert picked[0] == 0 and picked[-1] == 1999 and len(picked) == 1536


def test_one_backend_beside_torch():
    """What `elastic-attn bench` runs on a GPU, small, on the CPU backend."""
    parts = list(bench_gpu.measure_gpu_kernels((96, 160), device=CPU, pattern=PATTERN, repeats=1))
    assert [[row["tokens"] for row in rows] for rows, _ in parts] == [[96] * 5, [160] * 5]
    for row in parts[1][0]:
        assert row["dtype"] == "bfloat16" and row["backend"] == "cpu" and row["best_dense"] == "sdpa"
    assert [row["msr"] for row in parts[1][0] if not row["is_dense"]] == [0.0, 0.5, 0.75, 1.0]
    assert not any(failures for _, failures in parts)
