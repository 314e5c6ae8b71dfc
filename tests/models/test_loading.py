"""Loading by name: the precision that was asked for, ready to answer, and a word that is none."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import ElasticAttentionError, load_model
from elastic_attention.models.embedded import FOLDER_NAME, HUB_ID
from elastic_attention.models.families import name_publicly
from tiny_models import make_model


@pytest.fixture
def folder(tmp_path):
    make_model(vocab_size=300).save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_loaded_as_it_was_asked_for(folder):
    model, tokenizer = load_model(str(folder), dtype="float16", device="cpu")
    assert (model.dtype, model.device.type, model.training) == (torch.float16, "cpu", False)
    assert tokenizer.decode(tokenizer("a boat")["input_ids"]) == "a boat"


def test_an_unknown_precision_is_named_before_anything_is_fetched(tmp_path):
    with pytest.raises(ElasticAttentionError, match="dtype 'half' is unknown; use one of float32, bfloat16, float16"):
        load_model(str(tmp_path / "nowhere"), dtype="half")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_path_without_a_folder_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match=f"There is no model folder {name}; check"):
        load_model(name)


def test_a_file_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no model folder notes.txt"):
        load_model("notes.txt")


def test_a_folder_may_lie_in_the_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model(f"~/{folder.name}", device="cpu")[0].device.type == "cpu"


def test_a_checkpoint_that_lacks_weights_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ElasticAttentionError, match=f"lacks weights .*1 of them.* first {name}"):
        load_model(str(folder), device="cpu")


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    with pytest.raises(ElasticAttentionError, match="lacks weights .*2 of them.* first lm_head.weight"):
        load_model(str(folder), device="cpu")


def test_names_tell_nothing_of_this_computer(tmp_path):
    for folder in ("mine", FOLDER_NAME):
        (tmp_path / folder).mkdir()
    assert name_publicly(str(tmp_path / "mine")) == "mine"
    assert name_publicly(str(tmp_path / FOLDER_NAME)) == name_publicly(HUB_ID) == HUB_ID
    assert name_publicly("") is None
