"""A checkpoint beside the base model it claims: equal, trained and foreign projections."""

import pytest
import torch
from safetensors.torch import save_file

from elastic_attention import AdapterError
from elastic_attention.models.checkpoint import load_adapter
from elastic_attention.models.convert import convert_checkpoint
from released_models import (
    backbone_tensors,
    extra_tensors,
    router_tensors,
    write_release,
)


def write_base(folder, tensors=None):
    folder.mkdir()
    save_file(tensors or backbone_tensors(), folder / "model.safetensors")
    return folder


def test_equal_projections_are_told(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src"), out, base=write_base(tmp_path / "Qwen3-Tiny"))
    assert facts["projections"] == {"compared": 9, "different": 0, "largest": 0.0, "examples": []}
    assert "can be attached to it" in " ".join(facts["notes"]) and facts["base_model"]["name"] == "Qwen3-Tiny"
    assert load_adapter(out)[0].base_model.name == "Qwen3-Tiny"


def test_trained_projections_are_told(tmp_path, out):
    tensors = backbone_tensors() | router_tensors("flux") | extra_tensors()
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[name] + 0.25
    tensors["model.layers.1.mlp.up_proj.weight"] += 1.0  # only q, k and v are looked at
    folder = write_release(tmp_path / "src", "flux", tensors=tensors)
    facts = convert_checkpoint(folder, out, base=write_base(tmp_path / "base"))
    assert facts["projections"]["different"] == 1 and facts["projections"]["examples"] == [name]
    assert facts["projections"]["largest"] == pytest.approx(0.25, abs=1e-3)
    assert "load the backbone from this checkpoint" in " ".join(facts["notes"])


def test_rounding_to_a_lower_precision_is_no_difference(tmp_path, out):
    half = {name: tensor.bfloat16() for name, tensor in backbone_tensors().items()}
    folder = write_release(tmp_path / "src", tensors=half | router_tensors("elastic"))
    assert convert_checkpoint(folder, out, base=write_base(tmp_path / "base"))["projections"]["different"] == 0


def test_without_a_base_it_says_so(tmp_path, out):
    notes = " ".join(convert_checkpoint(write_release(tmp_path / "src", "flux"), out)["notes"])
    assert "were not compared" in notes and "public script trains them" in notes


def test_another_base_is_refused(tmp_path, out):
    folder = write_release(tmp_path / "src")
    less = {n: t for n, t in backbone_tensors().items() if "layers.2" not in n}
    with pytest.raises(AdapterError, match="is not the base of .*only one of them has"):
        convert_checkpoint(folder, out, base=write_base(tmp_path / "short", less))
    wide = {n: torch.zeros(len(t), 2) if "proj" in n else t for n, t in backbone_tensors().items()}
    with pytest.raises(AdapterError, match="is not the base of .* there, "):
        convert_checkpoint(folder, out, base=write_base(tmp_path / "wide", wide))
    with pytest.raises(AdapterError, match="There is no model folder"):
        convert_checkpoint(folder, out, base=tmp_path / "absent")
    assert not out.exists()
