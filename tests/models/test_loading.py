"""Loading by name: the precision that was asked for, ready to answer, and a word that is none."""

import pytest
import torch

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import ElasticAttentionError, load_model
from elastic_attention.models.embedded import FOLDER_NAME, HUB_ID
from elastic_attention.models.families import name_publicly
from tiny_models import make_model


def test_a_folder_is_loaded_as_it_was_asked_for(tmp_path):
    make_model(vocab_size=300).save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), dtype="float16", device="cpu")
    assert (model.dtype, model.device.type, model.training) == (torch.float16, "cpu", False)
    assert tokenizer.decode(tokenizer("a boat")["input_ids"]) == "a boat"


def test_an_unknown_precision_is_named_before_anything_is_fetched(tmp_path):
    with pytest.raises(ElasticAttentionError, match="dtype 'half' is unknown; use one of float32, bfloat16, float16"):
        load_model(str(tmp_path / "nowhere"), dtype="half")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_path_without_a_folder_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match=f"There is no model folder {name}; check"):
        load_model(name)


def test_names_tell_nothing_of_this_computer(tmp_path):
    for folder in ("mine", FOLDER_NAME):
        (tmp_path / folder).mkdir()
    assert name_publicly(str(tmp_path / "mine")) == "mine"
    assert name_publicly(str(tmp_path / FOLDER_NAME)) == name_publicly(HUB_ID) == HUB_ID
    assert name_publicly("") is None
