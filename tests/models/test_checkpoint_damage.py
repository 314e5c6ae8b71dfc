"""Adapter folders that are damaged or made by somebody else: named, and the model stays as it was."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from elastic_attention import AdapterError, RouterMismatch, attach, find_handle
from elastic_attention.models.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
)


def edit_config(folder, change):
    data = json.loads((folder / CONFIG_FILE).read_text())
    change(data)
    (folder / CONFIG_FILE).write_text(json.dumps(data))


def edit_weights(folder, change):
    state = load_file(folder / WEIGHTS_FILE)
    change(state)
    save_file(state, folder / WEIGHTS_FILE)


def truncate(name, keep):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name):
    return lambda folder: (folder / name).unlink()


def config_with(**changes):
    return lambda folder: edit_config(folder, lambda data: data.update(changes))


def base_with(**changes):
    return lambda folder: edit_config(folder, lambda data: data["base_model"].update(changes))


def router_with(**changes):
    return lambda folder: edit_config(folder, lambda data: data["router"].update(changes))


def weights_with(name, value):
    return lambda folder: edit_weights(folder, lambda state: state.update({name: value}))


FIRST = "layers.0.task_mlp.0.bias"
DAMAGE = {
    "no config": (remove(CONFIG_FILE), AdapterError, f"has no {CONFIG_FILE}.*save_pretrained"),
    "no weights": (remove(WEIGHTS_FILE), AdapterError, f"has no {WEIGHTS_FILE}"),
    "config truncated": (truncate(CONFIG_FILE, 0.5), AdapterError, "no valid JSON"),
    "config empty": (truncate(CONFIG_FILE, 0), AdapterError, "no valid JSON"),
    "config binary": (overwrite(CONFIG_FILE, b"\xff\xfe\x00"), AdapterError, "no valid JSON"),
    "config a list": (overwrite(CONFIG_FILE, b"[]"), AdapterError, "must be a table of keys"),
    "config nested too deep": (overwrite(CONFIG_FILE, b"[" * 100_000), AdapterError, "no valid JSON"),
    "unknown key": (config_with(code="import os"), AdapterError, r"unknown keys \['code'\]"),
    "unknown version": (config_with(format_version=99), AdapterError, "format_version 99.*upgrade"),
    "version of the wrong type": (config_with(format_version="1"), AdapterError, "format_version '1'"),
    "unknown granularity": (config_with(granularity="token"), AdapterError, "granularity='token'"),
    "wrong type": (router_with(head_dim="16"), AdapterError, r"router\.head_dim must be int"),
    "absurd size": (router_with(task_hidden=10**12), RouterMismatch, "does not hold the routers"),
    "window no multiple": (
        config_with(sparse_pattern=dict(num_sink_tokens=16, local_window=40, block_size=16)),
        AdapterError,
        "local_window=40",
    ),
    "layers that are not there": (config_with(routed_layers=[0, 1, 7]), AdapterError, r"\[7\] are not"),
    "a path as a layer": (config_with(routed_layers=["../../etc"]), AdapterError, "must be int"),
    "weights truncated": (truncate(WEIGHTS_FILE, 0.9), AdapterError, "damaged or truncated"),
    "weights cut in the header": (truncate(WEIGHTS_FILE, 0.001), AdapterError, "damaged or truncated"),
    "weights empty": (truncate(WEIGHTS_FILE, 0), AdapterError, "damaged or truncated"),
    "weights garbage": (overwrite(WEIGHTS_FILE, b"\x00" * 100), AdapterError, "damaged or truncated"),
    "weights a pickle": (overwrite(WEIGHTS_FILE, pickle.dumps({"a": 1})), AdapterError, "damaged or truncated"),
    "weights of other sizes": (weights_with(FIRST, torch.zeros(3)), RouterMismatch, FIRST),
    "one tensor too many": (weights_with("surprise", torch.zeros(3)), RouterMismatch, "surprise"),
    "one tensor missing": (lambda f: edit_weights(f, lambda s: s.pop(FIRST)), RouterMismatch, FIRST),
    "NaN": (weights_with(FIRST, torch.full((64,), torch.nan)), AdapterError, f"NaN or infinite.*{FIRST}"),
    "infinity": (weights_with(FIRST, torch.full((64,), torch.inf)), AdapterError, f"NaN or infinite.*{FIRST}"),
    "integers": (weights_with(FIRST, torch.zeros(64, dtype=torch.int64)), AdapterError, "int64"),
    "another base model": (base_with(num_kv_heads=4), RouterMismatch, "KV heads: routers want 4, the model has"),
    "a directory as config": (
        lambda f: ((f / CONFIG_FILE).unlink(), (f / CONFIG_FILE).mkdir()),
        AdapterError,
        f"has no {CONFIG_FILE}",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_the_model_stays_untouched(model, handle, folder, case):
    handle.detach()
    damage, error, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(error, match=message):
        attach(model, folder)
    assert find_handle(model) is None and model.config._attn_implementation == "sdpa"


def test_paths_inside_the_config_are_names_and_nothing_else(model, handle, folder, tmp_path):
    handle.detach()
    base_with(name="../../../../etc/passwd", revision="/etc")(folder)
    config_with(training={"data": "/etc/shadow", "__class__": "os.system"})(folder)
    handle = attach(model, folder)
    handle.save_pretrained(tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "copy"]
