"""Pictures and tables of speed, from made-up records."""

import pytest
from made_records import make_record

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.viz.performance import save_kernel_speed, save_model_speed, save_speed
from elastic_attention.viz.speed_tables import (
    render_absent,
    render_gpu_decode,
    render_gpu_others,
    render_gpu_prefill,
    render_gpu_prefill_short,
    render_model_batches,
    render_model_decode,
    render_model_decode_short,
    render_model_prefill,
    render_model_prefill_short,
    render_route_agreement,
    render_small_models,
    render_vllm_engine,
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
    def row(kernel, msr, tokens, **changes):
        return {
            "model": "qwen3-8b", "kernel": kernel, "msr": msr, "tokens": tokens, "batch": 1, "seconds": 2.0 - msr,
            "speedup": 2 / (2 - msr), "dense_seconds": 2.0, "bound_seconds": 1.9 - msr, "kv_ratio": 1 - 0.9 * msr,
            "tokens_per_second": 50.0, "pair": None if kernel == "fa3" else "fa-ssa", "density": None,
        } | changes  # fmt: skip

    rows = [row("fa3", 0.0, t) for t in (8192, 32768)]
    rows += [row("elastic", msr, t) for msr in (0.0, 0.7, 1.0) for t in (8192, 32768)]
    rows += [row("elastic", 0.7, 32768, pair=p, density=d) for p, d in (("fa-xa", 0.05), ("xa-ssa", 0.3))]
    rows += [row("elastic", 0.7, 32768, pair="fa-ta"), row("fa3", 0.0, 8192, model="llama")]
    decode = [row("fa3", 0.0, 8192), row("elastic", 0.7, 8192), row("elastic", 0.5, 8192)]
    metrics = {"rows": rows, "decode": decode}
    batch = {"model": "qwen3-8b", "tokens": 8192, "kernel": "elastic", "pair": "fa-ssa", "msr": 0.7}
    metrics["batches"] = [batch | {"largest_batch": 20}]
    metrics["missing"] = [{"section": "dense", "name": "fa3", "reason": "not installed"}]
    metrics["skipped"] = [{"section": "prefill", "kernel": "elastic", "tokens": 262144, "msr": 0.7, "run": 1}]
    return make_record("benchmarks/gpu_model.py", metrics)


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
    save_speed(model, path)
    texts = read_texts(path)
    for text in ("qwen3-8b, dense", "dense, fa3", "elastic, MSR 0.70", "Amdahl", "Decode over dense", "XA-SSA", "30%"):
        assert text in texts, text
    assert "llama" not in texts


def test_other_patterns_are_those_of_one_length_and_msr(model, tmp_path):
    rows = model["metrics"]["rows"]
    triangle = next(row for row in rows if row["pair"] == "fa-ta")
    rows += [triangle | {"tokens": 8192, "msr": msr} for msr in (0.0, 0.5, 0.7, 1.0)]
    save_speed(model, tmp_path / "model.svg")
    texts = read_texts(tmp_path / "model.svg")
    assert texts.count("FA-TA") == 1 and "prefill of 32K over dense" in texts


def test_speed_is_drawn_by_the_command_of_the_record(kernels, tmp_path):
    save_speed(kernels, tmp_path / "a.svg")
    assert "hopper" in read_texts(tmp_path / "a.svg")


@pytest.mark.parametrize("save", [save_kernel_speed, save_model_speed])
def test_records_without_speed_are_refused(save, tmp_path):
    with pytest.raises(ElasticAttentionError, match="no rows of speed"):
        save(make_record("demo", {"rows": []}), tmp_path / "x.svg")


@pytest.mark.parametrize("command", ["eval", "benchmarks/gpu_model.py"])
def test_rows_of_other_things_than_speed_are_refused(tmp_path, command):
    rows = [
        {"method": "routed", "label": "routed", "score": 0.9, "msr": 0.7, "batch": 1, "tokens": 4096, "seconds": 1.0}
    ]
    with pytest.raises(ElasticAttentionError, match="no rows of speed"):
        save_speed(make_record(command, {"rows": rows, "decode": [{"task": "needle"}]}), tmp_path / "x.svg")


def test_tables_of_kernels(kernels):
    lines = render_gpu_prefill(kernels).splitlines()
    assert len(lines) == 2 + 2 * 4 and lines[0].startswith("| Heads | Batch | Tokens | Kernel | TFLOP/s, MSR 0 |")
    hopper = next(line for line in lines if "hopper" in line)
    assert hopper == "| 32 / 8 × 128 | 1 | 8,192 | hopper | 600 | – | 600 | – | 600 | 1.50 | – |"
    decode = [row | {"milliseconds": 0.0424, "speedup": 1.25} for row in kernels["metrics"]["decode"]]
    metrics = {"decode": decode, "ceilings": kernels["metrics"]["ceilings"]}
    table = render_gpu_decode({"metrics": metrics})
    assert "| 32,768 | 1 | 0.50 | paged | 42.4 | 3.00 | 67% | 1.25 |" in table


def test_the_short_table_shows_the_cell_with_most_kernels(kernels):
    kernels["metrics"]["rows"].append(make_prefill("split fa3 + flex", 0.5, 8192))
    lines = render_gpu_prefill_short(kernels).splitlines()
    assert len(lines) == 2 + 5 and all(line.startswith("| 8,192 |") for line in lines[2:])


def test_table_of_the_other_kernels(kernels):
    metrics = kernels["metrics"]
    metrics["launches"] = [{"kernel": "triton", "launches": 1, "names": ["_prefill"]}]
    for row in metrics["blended"] + metrics["xattention"]:
        row["milliseconds"] = 2.0
    table = render_gpu_others(kernels)
    assert "| launches of one call, full and sparse heads | triton | 1 | – |" in table
    assert "| router of a layer, batch 4 | fused | 30.0 µs | – |" in table
    assert "| XAttention, 5% of the blocks, 32,768 tokens | scoring | 2.00 ms | 0.040 |" in table
    assert "| training, both paths, forward, 32,768 tokens | triton | 2.00 ms | 1.100 |" in table
    assert "| training, dense, forward, 32,768 tokens | fa3 | 2.00 ms | 1.100 |" in table


def test_tables_of_models(model):
    lines = render_model_prefill(model).splitlines()
    assert len(lines) == 2 + 2 + 6 + 3 + 1
    assert "| qwen3-8b | 8,192 | dense, fa3 | 0.00 | 2.00 | 1.00 | – | 1.00 | – |" in lines
    assert any("XA-SSA, 30% of the blocks" in line for line in lines)
    # More shares of sparse heads at one length do not make it the one with most attentions.
    fuller = [row | {"msr": i / 10} for row in model["metrics"]["rows"] if row["tokens"] == 8192 for i in range(9)]
    richer = {"metrics": {"rows": [*model["metrics"]["rows"], *fuller]}}
    for record in (model, richer):
        short = render_model_prefill_short(record).splitlines()
        assert len(short) == 2 + 1 + 3 + 3 and all(line.startswith("| 32,768 |") for line in short[2:])
    assert "| qwen3-8b | 8,192 | FA-SSA | 0.70 | 1 | 50.0 | 1.54 | – | – |" in render_model_decode(model).splitlines()
    assert len(render_model_decode_short(model).splitlines()) == 2 + 2
    assert "| qwen3-8b | 8,192 | FA-SSA | 0.70 | 20 | – | – |" in render_model_batches(model).splitlines()


def test_what_is_absent_is_listed(model):
    lines = render_absent(model).splitlines()
    assert lines[2:] == [
        "| dense | fa3 | – | not installed |",
        "| prefill | elastic | tokens 262144, msr 0.7 | no time |",
    ]
    assert render_absent({"metrics": {"missing": [], "skipped": []}}).startswith("Nothing")


def test_table_of_vllm():
    stock = {"way": "stock", "tokens": 131072, "requests": 4, "ttft_seconds": 40.0, "decoded_per_second": 200.0}
    elastic = {"way": "elastic", "tokens": 131072, "requests": 4, "ttft_seconds": 20.0, "decoded_per_second": 400.0}
    elastic |= {"ttft_speedup": 2.0, "decode_speedup": 2.0}
    table = render_vllm_engine({"metrics": {"rows": [elastic, stock]}})
    assert table.splitlines()[2] == "| 131,072 × 4 | 40.0 s | 20.0 s | 2.00 | 200.0 | 400.0 | 2.00 |"
    assert "–" in render_vllm_engine({"metrics": {"rows": [stock]}})
    two = render_vllm_engine({"metrics": {"rows": [stock, stock | {"ranks": 2, "ttft_seconds": 22.0}]}})
    assert [line.split(" | ")[0] for line in two.splitlines()[2:]] == ["| 131,072 × 4", "| 131,072 × 4, 2 GPUs"]


def test_table_of_small_models():
    step = {"way": "replayed", "prompts": 24, "tokens": 2048, "milliseconds_per_token": 7.69}
    pack = {"pack_tokens": 65536, "tokens_per_second": 171102.98}
    table = render_small_models({"metrics": {"decoding": [step], "training": [pack]}})
    assert table.splitlines()[2:] == [
        "| a token, 24 × 2,048 tokens | one CUDA graph | 7.7 ms |",
        "| training | packs of 65,536 tokens | 171,103 tokens / s |",
    ]


def test_table_of_routes():
    row = {"device": "cuda", "dtype": "bfloat16", "decisions": 1260, "agreement": 0.9992, "agreement_given_routes": 1.0}
    row |= {"clear_ratio": 0.98, "differing_clear": 0, "largest_move": 0.31, "smallest_margin": 0.0125}
    table = render_route_agreement({"metrics": {"rows": [row]}})
    assert "| cuda | bfloat16 | 1,260 | 99.92% | 100.00% | 98.00% | 0 | 0.310 | 0.013 |" in table.splitlines()[2]
