"""`bench`: the gate before the times, the rows, and the figures of the overhead."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import bench_cpu, bench_decode, bench_gpu, oracle
from elastic_attention.evaluation import session as session_module
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
    code, out, err = call(
        "bench", "--device", "cpu", "--quick", "--tokens", "1024", "--repeats", "1", "--json", "b.json"
    )
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
    code, out, _ = call("bench", "--device", "cpu", "--quick", "--tokens", "1024", "--repeats", "1", "--json", "b.json")
    assert code == 1 and "differs from the oracle" in out
    assert not (tmp_path / "b.json").exists()


def test_the_reference_passes_its_own_gate():
    options = {"group_size": 2, "head_dim": 16, "device": torch.device("cpu"), "backend": "reference"}
    for dtype in (torch.float32, torch.bfloat16):
        assert oracle.check_against_oracle(SMALL.pattern, dtype=dtype, **options) < 0.02


@pytest.mark.parametrize(("ratio", "heads", "count"), [(0.5, 3, 1), (0.7, 3, 2), (0.5, 8, 4), (0.7, 8, 6), (1.0, 3, 3)])
def test_nearest_number_of_sparse_heads(ratio, heads, count):
    assert bench_cpu.choose_num_sparse(ratio, heads) == count


@pytest.fixture
def gpu_bench(monkeypatch):
    """The way of a GPU, on the CPU, an eighth as long; says how many lengths fit and what fails."""
    plan = {"failures": [], "fits": 3}
    measure, measure_cells = bench_gpu.measure_gpu_kernels, bench_decode.measure_gpu_decode

    def measure_small(lengths, *, device, backend, repeats):
        options = {"device": torch.device("cpu"), "backend": backend, "repeats": repeats, "pattern": SMALL.pattern}
        for number, (rows, _) in enumerate(measure([n // 8 for n in lengths], **options)):
            if number == plan["fits"]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            yield rows, plan["failures"]

    def measure_decode(cells, *, device, repeats):
        options = {"device": torch.device("cpu"), "repeats": repeats, "pattern": SMALL.pattern}
        return measure_cells([(tokens // 16, batch) for tokens, batch in cells], **options)

    monkeypatch.setattr(bench_gpu, "measure_gpu_kernels", measure_small)
    monkeypatch.setattr(bench_decode, "measure_gpu_decode", measure_decode)
    monkeypatch.setattr(bench_decode, "CACHE_BYTES", 1)
    monkeypatch.setattr(session_module, "choose_device", torch.device)
    monkeypatch.setattr(bench_gpu, "describe_device", lambda device: "1 GPU")
    monkeypatch.setattr(bench_gpu, "measure_peak_bytes", lambda device: 0)
    return plan


def test_gpu_rows(call, gpu_bench):
    code, out, err = call("bench", "--device", "cuda", "--tokens", "2048", "--repeats", "1", "--json", "b.json")
    assert code == 0, err
    record = read_record("b.json")
    rows = record["metrics"]["rows"]
    assert [(row["kernel"], row["msr"]) for row in rows] == [
        ("cpu", 0.0),
        ("sdpa", 0.0),
        ("cpu", 0.5),
        ("cpu", 0.75),
        ("cpu", 1.0),
    ]
    assert record["device"] == "1 GPU" and record["metrics"]["missing"] == []
    assert "TFLOP/s" in out and "256" in out and "TB/s" in out
    decode = record["metrics"]["decode"]
    assert [(row["kernel"], row["batch"], row["msr"]) for row in decode[:5]] == [
        ("sdpa", 1, 0.0),
        ("paged", 1, 0.0),
        ("paged", 1, 0.5),
        ("paged", 1, 0.75),
        ("paged", 1, 1.0),
    ]
    held = 48  # sink and window
    assert [row["bytes"] for row in decode[:5]] == [
        512 * n for n in (1024, 1024, 512 + 4 * held, 256 + 6 * held, 8 * held)
    ]
    assert decode[5]["batch"] == 8 and record["n"] == 15


def test_a_gpu_kernel_that_fails_is_named(call, gpu_bench):
    lost = {"tokens": 8192, "msr": 0.5, "reason": "no such device function"}
    for kernel, exit_code in (("sdpa cudnn", 0), ("triton", 1)):
        gpu_bench["failures"] = [lost | {"kernel": kernel}]
        options = ["--device", "cuda", "--quick", "--tokens", "1024", "--repeats", "1", "--json", "b.json"]
        code, out, _ = call("bench", *options)
        assert code == exit_code and f"{kernel}: no such device function" in out
        assert read_record("b.json")["metrics"]["missing"][0]["kernel"] == kernel


def test_lengths_that_do_not_fit_a_gpu_end_the_table(call, gpu_bench, monkeypatch):
    monkeypatch.setattr(bench_gpu, "LENGTHS", (1024, 2048))
    gpu_bench["fits"] = 1
    code, out, _ = call("bench", "--device", "cuda", "--repeats", "1", "--json", "b.json")
    assert code == 0 and "does not fit this GPU: CUDA out of memory." in out
    assert {row["tokens"] for row in read_record("b.json")["metrics"]["rows"]} == {128}


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
