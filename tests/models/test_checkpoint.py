"""Adapter folders: the same routes after loading, and the format of the files."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from elastic_attention import AdapterError, attach
from elastic_attention.models import pretrained
from elastic_attention.models.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_adapter,
    save_adapter,
)
from tiny_models import attach_tiny, elastic_config, make_model, text


def test_save_load_save_gives_the_same_routes_and_bytes(model, handle, folder, tmp_path):
    ids = text(111, rows=4)
    with torch.no_grad():
        logits, routes = model(ids, use_cache=False).logits, handle.report()["routes"]
        handle.detach()
        again = attach(model, folder)
        assert torch.equal(model(ids, use_cache=False).logits, logits)
        assert torch.equal(again.report()["routes"], routes) and routes.any() and not routes.all()
    again.save_pretrained(tmp_path / "second")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "second" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(os.listdir(folder)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_folders_may_be_strings_nested_and_saved_over(model, handle, tmp_path):
    target = tmp_path / "a" / "b"
    handle.save_pretrained(str(target))
    with torch.no_grad():
        handle.routers[0].router_mlp[4].bias.fill_(3.0)
    handle.save_pretrained(target)
    handle.detach()
    assert attach(model, str(target)).routers[0].router_mlp[4].bias.tolist() == [3.0, 3.0]
    assert sorted(os.listdir(target)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_half_precision_weights_load_as_float32(model, handle, tmp_path):
    save_adapter(tmp_path, handle.config, handle.routers, torch.bfloat16)
    assert load_file(tmp_path / WEIGHTS_FILE)["layers.0.task_mlp.0.weight"].dtype == torch.bfloat16
    _, routers = load_adapter(tmp_path)
    for mine, theirs in zip(routers.parameters(), handle.routers.parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs.bfloat16().float())


def test_names_in_the_file_are_the_format(folder):
    names = set(load_file(folder / WEIGHTS_FILE))
    assert {f"layers.{i}.task_mlp.{j}.weight" for i in range(3) for j in (0, 2)} < names
    assert {f"layers.{i}.router_mlp.{j}.bias" for i in range(3) for j in (0, 2, 4)} < names and len(names) == 30
    assert json.loads((folder / CONFIG_FILE).read_text())["format_version"] == 1
    assert not (folder / "adapter_config.json").exists()


def test_shipped_routers_are_found_by_shape(model, handle, folder, tmp_path, monkeypatch):
    handle.detach()
    shipped = tmp_path / "pretrained"
    shutil.copytree(folder, shipped / "tiny-llama")
    monkeypatch.setattr(pretrained, "_FOLDER", shipped)
    assert pretrained.list_pretrained() == ["tiny-llama"]
    assert attach(model).config == handle.config
    with pytest.raises(AdapterError, match=r"No routers ship for qwen2.*Shipped: \['tiny-llama'\]"):
        attach(make_model("qwen2"))
    with pytest.raises(AdapterError, match="No routers ship"):
        attach(make_model(num_key_value_heads=3))


def test_untrained_routers_from_a_config_are_fresh_each_time():
    first, second = make_model(), make_model()
    config = elastic_config(first)
    torch.manual_seed(1)
    routers = attach(first, config).routers.state_dict()
    assert not torch.equal(attach(second, config).routers[0].task_mlp[0].weight, routers["layers.0.task_mlp.0.weight"])
    assert torch.equal(attach_tiny(make_model()).routers[0].task_mlp[0].weight, routers["layers.0.task_mlp.0.weight"])
