"""`report`: pages, pictures and tables from records; `train` on a tiny model."""

import pytest

from elastic_attention.records import build_record, read_record, write_record

ROW = {
    "task": "needle", "prompt_tokens": 2000, "expected": "1", "answer": "1", "correct": True, "msr": 0.5,
    "esr_prefill": 0.4, "esr_decode": 0.3, "prefill_seconds": 1.0, "prefill_seconds_dense": 2.0, "kv_bytes": 10,
    "kv_bytes_dense": 20, "answer_dense": "1", "correct_dense": True,
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    pytest.importorskip("matplotlib")
    record = build_record(
        "demo", config={}, model="tiny", data="none", device="cpu", seed=0, n=1, seconds=1.0, bytes=None,
        metrics={"rows": [ROW], "head_maps": {"needle": [[0, 1], [1, None]]}},
    )  # fmt: skip
    write_record(tmp_path / "results" / "demo.json", record)
    return tmp_path / "results"


def test_page_and_picture(call, results, tmp_path):
    code, out, _ = call("report", results / "demo.json", "--html", "page.html", "--head-map", "map.png")
    assert code == 0 and "page.html" in out and "map.png" in out
    assert "needle" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_speed(call, tmp_path):
    pytest.importorskip("matplotlib")
    router = [{"kernel": "fused", "batch": batch, "milliseconds": 0.03} for batch in (1, 4)]
    record = build_record(
        "benchmarks/gpu_kernels.py", config={}, model=None, data="none", device="gpu", seed=0, n=2, seconds=1.0,
        bytes=None, metrics={"rows": [], "router": router},
    )  # fmt: skip
    write_record(tmp_path / "speed.json", record)
    code, out, _ = call("report", tmp_path / "speed.json", "--speed", "speed.svg")
    assert code == 0 and "speed.svg" in out and (tmp_path / "speed.svg").is_file()


@pytest.mark.parametrize("option", ["--speed", "--frontier"])
def test_a_picture_of_a_record_without_its_rows_is_refused(call, results, tmp_path, option):
    code, _, err = call("report", results / "demo.json", option, "picture.svg")
    assert code == 2 and "pass a" in err and not (tmp_path / "picture.svg").exists()


@pytest.mark.parametrize("option", ["--html", "--head-map", "--frontier", "--speed", "--curves"])
def test_a_place_below_a_file_is_told_plainly(call, results, tmp_path, option):
    (tmp_path / "afile").write_text("kept", encoding="utf-8")
    code, _, err = call("report", results / "demo.json", option, "afile/x.svg")
    assert code == 2 and f"{option} afile/x.svg: afile is a file; name a folder" in err


@pytest.mark.parametrize("extra", [[], ["--check"]])
def test_a_page_without_markers_is_refused(call, results, tmp_path, extra):
    (tmp_path / "page.md").write_text("# Numbers\n", encoding="utf-8")
    code, out, err = call("report", "--tables", "page.md", "--results", results, *extra)
    assert code == 2 and "page.md" in err and "<!-- table:NAME -->" in err and "renewed" not in out


def test_tables_are_renewed_and_checked(call, results, tmp_path):
    readme = tmp_path / "page.md"
    readme.write_text("<!-- table:demo -->\n<!-- /table:demo -->\n", encoding="utf-8")
    arguments = ("report", "--tables", readme, "--results", results)
    assert call(*arguments, "--check")[0] == 1
    assert "needle" not in readme.read_text(encoding="utf-8"), "--check writes nothing"
    assert call(*arguments)[0] == 0
    assert "needle" in readme.read_text(encoding="utf-8")
    assert call(*arguments, "--check", "--json", "r.json")[0] == 0
    assert read_record("r.json")["metrics"]["rows"] == []


def test_train_runs_a_recipe(call, tiny, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "small.toml").write_text(
        f'model = "{tiny[1]}"\nsteps = 1\nprecision = "float32"\nvalidate_every = 0\nvalidation_samples = 1\n'
        '[data]\nkinds = ["needle"]\nlengths = [1024]\n'
        "[data.packs]\nsamples = 2\ntokens = 2048\nper_step = 1\ncache = 'cache'\n"
        "[pattern]\nnum_sink_tokens = 16\nlocal_window = 32\nblock_size = 16\n"
        "[intervals]\nsensitive = { low = 0.6, high = 0.7 }\n",
        encoding="utf-8",
    )
    code, out, err = call("train", "small.toml", "--output", "run", "--device", "cpu", "--json", "t.json")
    assert code == 0, err
    assert "1 of 1 steps" in out and "adapter" in out
    assert read_record("t.json")["metrics"]["is_finished"] is True
    assert (tmp_path / "run" / "adapter" / "elastic_config.json").is_file()
