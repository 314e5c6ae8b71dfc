"""LOOM's contract (loom-scope 0.8, scripts/run.py), without LOOM: the calls that it makes, in order and by name."""

import importlib

import pytest
import torch

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import attach
from elastic_attention.evaluation.loom import LoomModel, register
from elastic_attention.models.attach import find_handle
from tiny_models import elastic_config, make_model

PROMPT = "The boat is red and the sail is white. " * 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, model, tokenizer = tmp_path_factory.mktemp("loom"), make_model(vocab_size=300), make_byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(1)
    attach(model, elastic_config(model)).save_pretrained(folder / "routers")
    return str(folder / "model"), str(folder / "routers")


def retrieve(models, name):
    """As LOOM's RetrieveModel."""
    module, attribute = models[name]
    return getattr(importlib.import_module(module), attribute)


def test_what_loom_calls(folders, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    models = {"transformers": ("models.server.transformer.transformer", "Transformer"), "SnapKV": ("a", "b")}
    register(models)
    instance = retrieve(models, "transformers")(
        model_path=folders[0],
        torch_dtype="torch.float32",
        adapter_path=folders[1],
        gp_num="1",
        max_model_len=128000,
        gpu_memory_utilization=0.95,
    )
    model, tokenizer = instance.deploy()
    params = {"temperature": 0.0, "max_tokens": 5, "do_sample": False, "stop": ["\n"]}
    made = instance.updata_params(params, tokenizer, False)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    assert made == {
        "temperature": None,
        "top_p": None,
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": [tokenizer.eos_token_id, newline],
    }
    assert params["max_tokens"] == 5, "LOOM uses its settings again"
    said = instance.generate(model=model, tokenizer=tokenizer, input=PROMPT, params=made, model_name="tiny")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert said == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert find_handle(model).report()["msr"][0] > 0


def test_thoughts_are_left_out(folders, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    instance = LoomModel(folders[0], "torch.float32", folders[1])
    model, tokenizer = instance.deploy()
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: "hm </think> yes ")
    assert instance.generate(model, tokenizer, PROMPT, {"max_new_tokens": 2}) == "yes"


def test_only_names_that_loom_knows():
    with pytest.raises(KeyError, match="transformers"):
        register({"transformers": ("a", "b")}, name="ElasticAttention")
