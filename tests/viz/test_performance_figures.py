"""Pictures and tables of speed, from made-up records."""

import pytest
from made_records import make_record

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.viz.performance import save_kernel_speed, save_model_speed
from elastic_attention.viz.speed_tables import (
    render_gpu_decode,
    render_gpu_prefill,
    render_model_decode,
    render_model_prefill,
)


def make_prefill(kernel, msr, tokens, **changes):
    row = {"kernel": kernel, "is_dense": kernel == "fa3", "msr": msr, "tokens": tokens, "batch": 1, "heads": 32}
    row |= {"kv_heads": 8, "head_dim": 128, "milliseconds": 3.0, "teraflops": 600.0, "speedup": 1 + msr}
    return row | {"visited_fraction": 1 - 0.9 * msr} | changes


@pytest.fixture
def kernels():
    rows = [make_prefill("fa3", 0.0, tokens) for tokens in (8192, 32768)]
    rows += [
        make_prefill(k, msr, t) for k in ("hopper", "triton", "flex") for msr in (0.0, 0.5, 1.0) for t in (8192, 32768)
    ]
    cell = {"tokens": 32768, "batch": 1}
    decode = [{**cell, "kernel": k, "msr": 0.5, "terabytes_per_second": 3.0} for k in ("fa3 flat", "paged")]
    blended = [{**cell, "kernel": k, "phase": "forward", "dense_ratio": 1.1} for k in ("fa3", "triton")]
    choice = [{**cell, "kernel": "scoring", "density": d, "dense_ratio": 0.04} for d in (0.05, 0.3, None)]
    router = [{"kernel": k, "batch": b, "milliseconds": 0.03} for k in ("fused", "module") for b in (1, 4)]
    metrics = {"rows": rows, "decode": decode, "blended": blended, "xattention": choice, "router": router}
    metrics["ceilings"] = [{"name": "read", "terabytes_per_second": 4.5}]
    return make_record("benchmarks/gpu_kernels.py", metrics)


@pytest.fixture
def model():
    def row(kernel, msr, tokens):
        return {
            "model": "qwen3-8b", "kernel": kernel, "msr": msr, "tokens": tokens, "batch": 1, "seconds": 2.0 - msr,
            "speedup": 2 / (2 - msr), "dense_seconds": 2.0, "bound_seconds": 1.9 - msr, "kv_ratio": 1 - 0.9 * msr,
            "tokens_per_second": 50.0,
        }  # fmt: skip

    rows = [row("fa3", 0.0, t) for t in (8192, 32768)]
    rows += [row("elastic", msr, t) for msr in (0.0, 0.7, 1.0) for t in (8192, 32768)] + [row("router", 0.7, 8192)]
    return make_record(
        "benchmarks/gpu_model.py", {"rows": rows, "decode": [row("fa3", 0.0, 8192), row("elastic", 0.7, 8192)]}
    )


def read_texts(path):
    import re

    return "".join(re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8")))


def test_kernel_panels(kernels, tmp_path):
    path = tmp_path / "kernels.svg"
    save_kernel_speed(kernels, path)
    texts = read_texts(path)
    for text in ("hopper", "triton", "fa3", "flex", "paged", "read-only rate", "8K", "32K", "scoring", "fused"):
        assert text in texts, text
    assert "mathdefault" not in texts
    first = path.read_bytes()
    save_kernel_speed(kernels, path)
    assert path.read_bytes() == first


def test_sections_that_are_missing_leave_no_panel(kernels, tmp_path):
    record = make_record("benchmarks/gpu_kernels.py", {"rows": [], "router": kernels["metrics"]["router"]})
    save_kernel_speed(record, tmp_path / "router.svg")
    assert "Router" in read_texts(tmp_path / "router.svg") and "Decode" not in read_texts(tmp_path / "router.svg")


def test_model_panels(model, tmp_path):
    path = tmp_path / "model.svg"
    save_model_speed(model, path)
    texts = read_texts(path)
    for text in ("qwen3-8b: prefill", "qwen3-8b: decode", "dense, fa3", "elastic, MSR 0.70", "Amdahl"):
        assert text in texts, text
    assert "router" not in texts


@pytest.mark.parametrize("save", [save_kernel_speed, save_model_speed])
def test_records_without_speed_are_refused(save, tmp_path):
    with pytest.raises(ElasticAttentionError, match="no rows of speed"):
        save(make_record("demo", {"rows": []}), tmp_path / "x.svg")


def test_tables_of_kernels(kernels):
    lines = render_gpu_prefill(kernels).splitlines()
    assert len(lines) == 2 + 2 * 4 and lines[0].startswith("| Tokens | Heads | Kernel | TFLOP/s, MSR 0 |")
    hopper = next(line for line in lines if "hopper" in line)
    assert hopper == "| 8,192 | 32 / 8 × 128 | hopper | 600 | – | 600 | – | 600 | 1.50 | – |"
    decode = [row | {"milliseconds": 0.0424, "speedup": 1.25} for row in kernels["metrics"]["decode"]]
    table = render_gpu_decode({"metrics": {"decode": decode}})
    assert "| 32,768 | 1 | 0.50 | paged | 42.4 | 3.00 | 1.25 |" in table


def test_tables_of_models(model):
    lines = render_model_prefill(model).splitlines()
    assert len(lines) == 2 + 2 + 6 + 1
    assert "| qwen3-8b | 8,192 | dense, fa3 | 0.00 | 2.00 | 1.00 | – | 1.00 | – |" in lines
    assert any("elastic, with routers" in line for line in lines)
    assert "| qwen3-8b | 8,192 | 1 | elastic | 0.70 | 50.0 | 1.54 | – | – |" in render_model_decode(model).splitlines()
