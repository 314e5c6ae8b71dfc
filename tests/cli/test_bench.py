"""`bench`: the gate before the times, the rows, and the figures of the overhead."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import bench_cpu, oracle
from elastic_attention.evaluation.memory import MemoryTask, measure_memory
from elastic_attention.evaluation.overhead import measure_kv_bytes, measure_overhead
from elastic_attention.evaluation.session import open_session
from elastic_attention.records import read_record

SMALL = bench_cpu.Shape(
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=16,
    pattern=StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16),
)


@pytest.fixture
def small_shapes(monkeypatch):
    monkeypatch.setattr(bench_cpu, "SHAPES", (SMALL,))


def test_kernel_rows(call, small_shapes):
    code, out, err = call("bench", "--quick", "--tokens", "1024", "--repeats", "1", "--json", "b.json")
    assert code == 0, err
    rows = read_record("b.json")["metrics"]["rows"]
    assert [row["msr"] for row in rows] == [0.0, 0.5, 0.5, 1.0] * 2
    assert [row["dtype"] for row in rows] == ["float32"] * 4 + ["bfloat16"] * 4
    for row in rows:
        assert (row["tokens"], row["heads"], row["kv_heads"], row["head_dim"]) == (1024, 4, 2, 16)
        assert row["ratio"] == pytest.approx(row["milliseconds"] / row["dense_milliseconds"] / row["visited_fraction"])
    # All sparse: a query reads the sink and two blocks, its own block up to itself; the first 48 read all.
    visited = 48 * 49 // 2 + sum(16 + 16 + p % 16 + 1 for p in range(48, 1024))
    assert rows[3]["visited_fraction"] == pytest.approx(visited / (1024 * 1025 // 2))
    assert rows[0]["visited_fraction"] == 1.0
    assert "1,024" in out


@pytest.mark.parametrize("fault", [1e-3, float("nan")])
def test_a_wrong_kernel_is_not_timed(call, small_shapes, monkeypatch, tmp_path, fault):
    right = oracle.hybrid_attention

    def wrong(*args, backend, **kwargs):
        return right(*args, backend=backend, **kwargs) + (0.0 if backend == "reference" else fault)

    monkeypatch.setattr(oracle, "hybrid_attention", wrong)
    code, out, _ = call("bench", "--quick", "--tokens", "1024", "--repeats", "1", "--json", "b.json")
    assert code == 1 and "differs from the oracle" in out
    assert not (tmp_path / "b.json").exists()


def test_the_reference_passes_its_own_gate():
    options = {"group_size": 2, "head_dim": 16, "device": torch.device("cpu"), "backend": "reference"}
    for dtype in (torch.float32, torch.bfloat16):
        assert oracle.check_against_oracle(SMALL.pattern, dtype=dtype, **options) < 0.02


@pytest.mark.parametrize(("ratio", "heads", "count"), [(0.5, 3, 1), (0.7, 3, 2), (0.5, 8, 4), (0.7, 8, 6), (1.0, 3, 3)])
def test_nearest_number_of_sparse_heads(ratio, heads, count):
    assert bench_cpu.choose_num_sparse(ratio, heads) == count


@pytest.fixture(scope="module")
def session(tiny):
    return open_session(tiny[1], routers=tiny[3], device="cpu", dtype="float32")


@pytest.mark.parametrize("tokens", [47, 48, 49, 64, 111, 200])
def test_cache_holds_what_the_formula_says(session, tokens):
    result = measure_kv_bytes(session, tokens=tokens)
    assert result["kv_bytes"] == result["kv_bytes_formula"] <= result["kv_bytes_dense"]
    assert (result["kv_bytes"] < result["kv_bytes_dense"]) == (tokens > 48)


def test_overhead_row(session):
    row = measure_overhead(session, tokens=100, repeats=2)
    assert row["tokens"] == 100 and row["router_milliseconds"] > 0
    assert row["router_ratio"] == pytest.approx(row["router_milliseconds"] / row["dense_milliseconds"])
    assert not session.handle.has_given_routes
    first = session.model.model.layers[0].self_attn
    assert len(first._forward_pre_hooks) == 1, "the clock's hooks are gone"


def test_memory_comes_from_another_process(tiny):
    task = MemoryTask(
        way="elastic", model=tiny[1], routers=tiny[3], device="cpu", dtype="float32", tokens=100, new_tokens=2
    )
    result = measure_memory(task)
    assert result["tokens"] == 100 and result["peak_bytes"] >= result["loaded_bytes"] > 50e6
