"""The kernel benchmark at a size that a CPU manages: sections, the gate, parts that add up to one record."""

import gpu_kernels
import gpu_parts
import pytest
import torch
from sections import merge_rows

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import oracle
from elastic_attention.records import read_record

SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
OPTIONS = ["--device", "cpu", "--batches", "1", "--heads", "4/2/16", "--ratios", "0", ".5", "1", "--repeats", "2"]
OPTIONS += ["--ceiling-scale", "4096", "--blended-lengths", "128", "--peers", "dense"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the benchmark with a small pattern; gives (exit code, the record or None)."""
    for module in (gpu_kernels, gpu_parts):
        monkeypatch.setattr(module, "PATTERN", SMALL)

    def call(*arguments, backends=("cpu",)):
        path = tmp_path / "kernels.json"
        code = gpu_kernels.main([*OPTIONS, "--json", str(path), "--backends", *backends, *arguments])
        return code, read_record(path) if path.exists() else None

    return call


def test_sections_that_a_cpu_can_serve(run):
    code, record = run("--only", "ceilings", "launches", "prefill", "blended", "xattention", "--lengths", "128")
    assert code == 0
    metrics = record["metrics"]
    assert {row["name"] for row in metrics["ceilings"]} == {"copy", "matmul"}
    assert [(row["kernel"], row["msr"]) for row in metrics["rows"]] == [
        ("cpu", 0.0),
        ("sdpa", 0.0),
        ("cpu", 0.5),
        ("cpu", 1.0),
    ]
    for row in metrics["rows"]:
        assert row["speedup"] == pytest.approx(row["dense_milliseconds"] / row["milliseconds"])
        assert row["relative_error"] is None or row["relative_error"] < 1e-5
    assert {(row["kernel"], row["phase"]) for row in metrics["blended"]} == {
        (kernel, phase) for kernel in ("cpu", "sdpa") for phase in ("forward", "both")
    }
    assert [row["kernel"] for row in metrics["oracle"]] == ["cpu"]
    # Nothing is dropped in silence: what a CPU lacks is named.
    named = {(row["section"], row["name"]) for row in metrics["missing"]}
    assert {("ceilings", "read"), ("launches", "trace"), ("prefill", "fa3"), ("xattention", "scoring")} <= named
    assert record["config"]["pattern"]["local_window"] == 32 and "/" not in record["config"]["options"]["json"]


def test_a_wrong_kernel_is_not_reported(run, monkeypatch, capsys):
    right = oracle.hybrid_attention

    def wrong(*args, backend, **kwargs):
        return right(*args, backend=backend, **kwargs) + (0.0 if backend == "reference" else 1e-3)

    monkeypatch.setattr(oracle, "hybrid_attention", wrong)
    code, record = run("--only", "prefill", "--lengths", "128")
    assert code == 1 and record is None and "differs from the oracle" in capsys.readouterr().err


def test_a_backend_that_cannot_run_is_named(run):
    code, record = run("--only", "prefill", "--lengths", "128", backends=("cpu", "hopper"))
    assert code == 0 and {row["kernel"] for row in record["metrics"]["rows"]} == {"cpu", "sdpa"}
    assert "hopper" in {row["name"] for row in record["metrics"]["missing"]}


def test_parts_add_up(run):
    """A second run adds a length and measures another again; what was skipped and then measured is skipped no more."""
    _, record = run("--only", "prefill", "--lengths", "128", "160", "--max-seconds", "0")
    assert [row["tokens"] for row in record["metrics"]["skipped"]] == [128, 160]
    run("--only", "prefill", "--lengths", "128", "--ratios", "0", "--add")
    _, record = run("--only", "prefill", "--lengths", "160", "--ratios", "1", "--add")
    metrics = record["metrics"]
    assert metrics["skipped"] == [] and len(metrics["runs"]) == 3
    assert [(row["tokens"], row["kernel"], row["msr"]) for row in metrics["rows"]] == [
        (128, "cpu", 0.0),
        (128, "sdpa", 0.0),
        (160, "sdpa", 0.0),
        (160, "cpu", 1.0),
    ]
    assert all(entry["created"] and "commit" in entry for entry in metrics["runs"])
    _, record = run("--only", "prefill", "--lengths", "128", "--ratios", "1", "--add")
    again = [row for row in record["metrics"]["rows"] if row["tokens"] == 128]
    assert [row["msr"] for row in again] == [0.0, 1.0]  # dense, then ours: the rows of one shape come from one run


def test_merging_leaves_other_sections_and_models_alone():
    old = {"rows": [{"model": "a", "tokens": 8}, {"model": "b", "tokens": 8}], "ceilings": [{"name": "copy", "x": 1}]}
    new = {"rows": [{"model": "a", "tokens": 8, "new": True}], "ceilings": [{"name": "read"}]}
    merged = merge_rows(old, new)
    assert merged["rows"] == [{"model": "b", "tokens": 8}, {"model": "a", "tokens": 8, "new": True}]
    assert [row["name"] for row in merged["ceilings"]] == ["copy", "read"]


def test_router_section(run):
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU; tests/kernels/triton covers the kernel itself")
    _, record = run("--only", "router", "--router-layers", "2", "--router-batches", "1", "--device", "cuda")
    assert {row["kernel"] for row in record["metrics"]["router"]} == {"fused", "module"}
    assert all(row["largest_difference"] < 1e-4 for row in record["metrics"]["router"])


def test_decode_cell_counts_what_the_routes_need():
    shape = gpu_parts.AttentionShape(tokens=4096, batch=2, num_q_heads=8, num_kv_heads=4, head_dim=16)
    bench = gpu_kernels.KernelBench(options=None, device=torch.device("cpu"), backends=[])
    cell = gpu_parts.DecodeCell(shape=shape, routes=shape.spread_sparse(0.5), bench=bench)
    assert cell.lengths == [4096, 2176] * 4
    assert cell.num_bytes == 2 * 16 * 4 * 4 * (4096 + 2176)


@pytest.mark.parametrize("text", ["32/8", "a/b/c", "32"])
def test_heads_that_make_no_sense_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        gpu_kernels.parse_options(["--heads", text])
    said = capsys.readouterr().err
    assert "must be" in said or "invalid" in said
