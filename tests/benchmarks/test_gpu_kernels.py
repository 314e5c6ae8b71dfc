"""The kernel benchmark at a size that a CPU manages: sections, the gate, parts that add up to one record."""

import gpu_decode
import gpu_kernels
import gpu_parts
import pytest
import torch
from sections import merge_rows

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import oracle
from elastic_attention.kernels.masked import attend_masked
from elastic_attention.records import read_record

SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = ["--device", "cpu", "--batches", "1", "--heads", "4/2/16", "--ratios", "0", ".5", "1", "--repeats", "2"]
OPTIONS += ["--ceiling-scale", "4096", "--blended-lengths", "128", "--peers", "dense"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the benchmark with a small pattern; gives (exit code, the record or None)."""
    for module in (gpu_decode, gpu_kernels, gpu_parts):
        monkeypatch.setattr(module, "PATTERN", SMALL)

    def call(*arguments, backends=("cpu",)):
        path = tmp_path / "kernels.json"
        code = gpu_kernels.main([*OPTIONS, "--json", str(path), "--backends", *backends, *arguments])
        return code, read_record(path) if path.exists() else None

    return call


def test_sections_that_a_cpu_can_serve(run):
    sizes = ["--lengths", "128", "--decode-lengths", "200", "--decode-batches", "2", "--xattention-lengths", "512"]
    sections = ["ceilings", "launches", "decode", "prefill", "blended", "xattention"]
    code, record = run("--only", *sections, *sizes, "--decode-ratios", ".5", "--densities", ".5")
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
    assert [(row["kernel"], row["msr"], row["bytes"]) for row in metrics["decode"]] == [
        ("paged", 0.5, 2 * 16 * 4 * 2 * (200 + 48))
    ]
    chosen = {(row["kernel"], row["density"]): row for row in metrics["xattention"]}
    assert set(chosen) == {("sdpa", None), ("scoring", None), ("scoring", 0.5), ("cpu", 0.5)}
    assert chosen["cpu", 0.5]["dense_ratio"] > 0 and chosen["cpu", 0.5]["teraflops"] > 0
    assert [row["kernel"] for row in metrics["oracle"]] == ["cpu"]
    # Nothing is dropped in silence: what a CPU lacks is named.
    named = {(row["section"], row["name"]) for row in metrics["missing"]}
    assert {("ceilings", "read"), ("launches", "trace"), ("prefill", "fa3"), ("decode", "fa3 flat")} <= named
    assert record["config"]["pattern"]["local_window"] == 32
    options = metrics["runs"][0]["options"]
    assert options["lengths"] == [128] and "/" not in options["json"]


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


def test_parts_add_up(run, monkeypatch):
    """A second run measures what is not in the record yet; what was skipped and then measured is skipped no more."""
    _, record = run("--only", "prefill", "--lengths", "128", "160", "--max-seconds", "0")
    assert [row["tokens"] for row in record["metrics"]["skipped"]] == [128, 160]
    run("--only", "prefill", "--lengths", "128", "--ratios", "0", "--add")
    code, record = run("--only", "prefill", "--lengths", "128", "160", "--ratios", "1", "--add")
    metrics = record["metrics"]
    assert code == 0 and metrics["skipped"] == [] and len(metrics["runs"]) == 3
    assert [(row["tokens"], row["kernel"], row["msr"], row["run"]) for row in metrics["rows"]] == [
        (128, "cpu", 0.0, 1),
        (128, "sdpa", 0.0, 1),
        (160, "sdpa", 0.0, 2),
        (160, "cpu", 1.0, 2),
    ]
    assert all(entry["created"] and "commit" in entry for entry in metrics["runs"])
    monkeypatch.setattr(gpu_kernels, "measure_prefill", lambda *a, **k: pytest.fail("it is in the record"))
    assert run("--only", "prefill", "--lengths", "128", "160", "--add")[0] == 0


def test_merging_keeps_what_is_not_measured_again():
    old = {"rows": [{"model": "a", "tokens": 8}, {"model": "b", "tokens": 8}], "ceilings": [{"name": "copy", "x": 1}]}
    new = {"rows": [{"model": "a", "tokens": 8, "new": True}], "ceilings": [{"name": "read"}]}
    merged = merge_rows(old, new)
    assert merged["rows"] == [{"model": "b", "tokens": 8}, {"model": "a", "tokens": 8, "new": True}]
    assert [row["name"] for row in merged["ceilings"]] == ["copy", "read"]


def test_what_is_there_is_neither_missing_nor_skipped():
    absent = [{"section": "prefill", "kernel": "fa3", "tokens": n} for n in (8, 16, 32)]
    missing = [{"section": "prefill", "name": "fa3", "tokens": n, "reason": "no"} for n in (8, 16)]
    merged = merge_rows({"skipped": absent, "missing": missing}, {"rows": [{"kernel": "fa3", "tokens": 8, "run": 1}]})
    assert [row["tokens"] for row in merged["missing"]] == [16]
    assert [row["tokens"] for row in merged["skipped"]] == [32]


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # of the interpreter
def test_router_section(run):
    pytest.importorskip("triton")
    options = ["--router-layers", "2", "--router-batches", "1", "--device", str(DEVICE)]
    _, record = run("--only", "router", *options, "--repeats", "1")
    rows = record["metrics"]["router"]
    assert {row["kernel"] for row in rows} == {"fused", "module"}
    assert all(row["largest_difference"] < 1e-4 for row in rows)


def test_attention_over_lists_is_compared_first():
    device = torch.device("cpu")
    assert gpu_parts.check_lists("cpu", attend_masked, device, torch.float32) < 1e-5
    with pytest.raises(oracle.OracleMismatch, match="'broken' over block lists"):
        gpu_parts.check_lists("broken", lambda q, *args, **lists: (q, None), device, torch.float32)


def test_decode_cell_counts_what_the_routes_need():
    shape = gpu_decode.AttentionShape(tokens=4096, batch=2, num_q_heads=8, num_kv_heads=4, head_dim=16)
    bench = gpu_kernels.KernelBench(options=None, device=torch.device("cpu"), backends=[])
    cell = gpu_decode.DecodeCell(shape=shape, routes=shape.spread_sparse(0.5), bench=bench)
    assert cell.lengths == [4096, 2176] * 4
    assert cell.num_bytes == 2 * 16 * 4 * 4 * (4096 + 2176)


@pytest.mark.parametrize("text", ["32/8", "a/b/c", "32"])
def test_heads_that_make_no_sense_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        gpu_kernels.parse_options(["--heads", text])
    said = capsys.readouterr().err
    assert "must be" in said or "invalid" in said
