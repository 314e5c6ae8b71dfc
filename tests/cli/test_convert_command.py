"""`elastic-attn convert`: what it says, the record, and one line for what is wrong."""

import json

import pytest
from safetensors.torch import save_file

from elastic_attention.models.checkpoint import load_adapter, read_static_routes
from elastic_attention.records import read_record
from released_models import backbone_tensors, write_release


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "Elastic-Tiny")


def test_routers_with_a_base(call, tmp_path, release):
    (tmp_path / "Tiny").mkdir()
    save_file(backbone_tensors(), tmp_path / "Tiny" / "model.safetensors")
    code, out, err = call("convert", release, "adapter", "--base", tmp_path / "Tiny", "--json", "record.json")
    assert code == 0 and not err
    assert "elastic: head routers of 3 layers written to adapter" in out
    assert "0 of 9 projections differ" in " ".join(out.split()) and "Record: record.json" in out
    assert load_adapter(tmp_path / "adapter")[0].base_model.name == "Tiny"
    text = (tmp_path / "record.json").read_text()
    record = read_record(tmp_path / "record.json")
    assert record["command"] == "convert" and record["n"] == 3 and record["model"]["name"] == "Tiny"
    assert record["metrics"]["rows"][0]["source"] == "Elastic-Tiny" and record["metrics"]["kind"] == "elastic"
    assert str(tmp_path) not in text and json.loads(text)["bytes"] > 0


def test_a_static_mask_at_a_share(call, tmp_path):
    (tmp_path / "heads.tsv").write_text("1\t0\n0.25\t0.75\n")
    code, out, _ = call("convert", "heads.tsv", "mask", "--msr", "0.25")
    assert (
        code == 0
        and "table: a static mask of 2 layers written to mask" in out
        and "set_routes" in out
        and "attach" in out
    )
    assert read_static_routes(tmp_path / "mask").sum() == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere", "out"], "There is no model folder"),
        (["Elastic-Tiny", "out", "--msr", "0.5"], "static masks"),
        (["Elastic-Tiny", "out", "--base", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(call, release, arguments, word):
    code, _, err = call("convert", *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and word in err


def test_wrong_usage(call):
    for arguments in ([], ["only-one"], ["a", "b", "--msr", "2"]):
        code, _, err = call("convert", *arguments)
        assert code == 2 and "Traceback" not in err
