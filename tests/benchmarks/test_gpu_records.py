"""The plan of both records: every step is a valid command, and the plan goes on where the records stand."""

import shlex

import gpu_decode
import gpu_kernels
import gpu_model
import gpu_parts
import gpu_records
import pytest
from gpu_records import STEPS, Step

from elastic_attention import StreamingConfig
from elastic_attention.records import read_record

TINY = (
    Step(
        name="kernels",
        module="gpu_kernels",
        longest=0,
        options="--device cpu --heads 4/2/16 --batches 1 --only prefill --lengths 128 --ratios .5 "
        "--peers dense --repeats 1",
    ),
    Step(
        name="model",
        module="gpu_model",
        longest=0,
        options="--device cpu --model tiny --only prefill decode --lengths 256 --ratios .5 --pairs fa-ssa "
        "--warm-tokens 64 --decode-cells 128/1 --steps 2 --copy-bytes 100000",
    ),
)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_steps_are_commands(step):
    module = {"gpu_kernels": gpu_kernels, "gpu_model": gpu_model}[step.module]
    options = module.parse_options([*shlex.split(step.options), "--json", "x.json", "--add"])
    assert set(options.only) <= set(module.SECTIONS)


def test_the_plan_covers_what_the_records_promise():
    models = [gpu_model.parse_options(shlex.split(s.options)) for s in STEPS if s.module == "gpu_model"]
    prefill = [o for o in models if "prefill" in o.only]
    assert {n for o in prefill for n in o.lengths} == {2**n for n in range(13, 19)}
    assert {p for o in prefill for p in o.pairs} == {"fa-ssa", "fa-xa", "xa-ssa", "fa-ta"}
    assert {r for o in prefill for r in o.ratios} == {0.0, 0.5, 0.7, 0.85, 1.0}
    assert {c for o in models if "decode" in o.only for c in o.decode_cells} == set(gpu_model.DECODE_CELLS)
    assert {o.model for o in models} == {"qwen3-8b", "llama-3.1-8b"} and any("batches" in o.only for o in models)


def test_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    for module in (gpu_decode, gpu_kernels, gpu_parts):
        monkeypatch.setattr(module, "PATTERN", StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16))
    assert gpu_records.run_steps(TINY, tmp_path, max_seconds=0, backends=["cpu"]) == 0
    for name, count in (("gpu_kernels", 1), ("gpu_model", 4)):
        metrics = read_record(tmp_path / f"{name}.json")["metrics"]
        assert metrics["rows"] == [] and len(metrics["skipped"]) == count
    assert read_record(tmp_path / "gpu_model.json")["model"] is None  # nothing of it was measured
    assert gpu_records.run_steps(TINY, tmp_path, max_seconds=1000, backends=["cpu"]) == 0
    rows = {name: read_record(tmp_path / f"{name}.json")["metrics"]["rows"] for name in ("gpu_kernels", "gpu_model")}
    assert [row["kernel"] for row in rows["gpu_kernels"]] == ["sdpa", "cpu"]
    assert [row["kernel"] for row in rows["gpu_model"]] == ["sdpa", "elastic"]
    assert read_record(tmp_path / "gpu_model.json")["model"] == "tiny"
    assert gpu_records.run_steps(TINY, tmp_path, max_seconds=1000, backends=["cpu"]) == 0
    assert read_record(tmp_path / "gpu_model.json")["metrics"]["rows"] == rows["gpu_model"]
    assert "step model: exit code 0" in capsys.readouterr().out


def test_a_step_that_fails_does_not_take_the_others_along(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_kernels, "main", lambda arguments: 1 / 0)
    assert gpu_records.run_steps(TINY, tmp_path, max_seconds=1000, backends=["cpu"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert read_record(tmp_path / "gpu_model.json")["metrics"]["rows"]
