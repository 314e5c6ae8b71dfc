"""Adapter folders: the same routes after loading, a clear error for everything that is wrong, nothing half-written."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elastic_attention import AdapterError, RouterMismatch, attach, find_handle
from elastic_attention.models import checkpoint, pretrained
from elastic_attention.models.checkpoint import (
    CONFIG_FILE,
    STATIC_FILE,
    WEIGHTS_FILE,
    load_adapter,
    read_static_routes,
    save_adapter,
    save_static_routes,
    write_together,
)
from tiny_models import attach_tiny, elastic_config, make_model, text


@pytest.fixture
def folder(handle, tmp_path):
    handle.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


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


# Damaged and foreign files ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "source", ["absent", "./absent", "/absent/adapter", "../absent", "a/b/c", "", "~/absent", "a\\b"]
)
def test_no_such_folder(model, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="There is no adapter folder|has no elastic_config"):
        attach(model, source)


def test_a_file_is_no_folder(model, handle, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        handle.save_pretrained(path)
    handle.detach()
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        attach(model, path)
    assert path.read_text() == "mine"


def test_a_hub_id_that_cannot_be_fetched(model, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = {}

    def offline(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AdapterError, match="someone/routers is no local folder and could not be fetched.*offline"):
        attach(model, "someone/routers", revision="abc")
    files = [CONFIG_FILE, WEIGHTS_FILE, STATIC_FILE]
    assert asked == {"repo_id": "someone/routers", "revision": "abc", "allow_patterns": files}


def test_a_hub_id_that_answers(model, handle, folder, monkeypatch):
    import huggingface_hub

    handle.detach()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    assert attach(model, "someone/routers").config == handle.config


def test_push_uploads_the_two_files_and_a_card(handle, monkeypatch):
    import huggingface_hub

    uploaded = {}

    class FakeApi:
        def create_repo(self, repo_id, **options):
            uploaded["created"] = repo_id, options["private"]

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            uploaded["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return type("Commit", (), {"commit_url": "https://example.invalid/commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert handle.push_to_hub("me/x", private=True) == "https://example.invalid/commit"
    assert uploaded["created"] == ("me/x", True)
    assert set(uploaded["files"]) == {CONFIG_FILE, WEIGHTS_FILE, "README.md"}
    card = uploaded["files"]["README.md"].decode()
    assert "library_name: elastic-attention" in card and 'attach(model, "me/x")' in card and "base_model:" in card


# A full disk ------------------------------------------------------------------------------------------------------


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_old_files(model, handle, folder, monkeypatch, call, nth):
    """Whichever of the two files cannot be written, what was loadable stays loadable and nothing is left behind."""
    before = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    original, calls = getattr(os, call), []

    def fail_on_nth(*args, **kwargs):
        calls.append(args)
        return no_space() if len(calls) == nth else original(*args, **kwargs)

    monkeypatch.setattr(checkpoint.os, call, fail_on_nth)
    with torch.no_grad():
        handle.routers[0].router_mlp[4].bias.fill_(3.0)
    with pytest.raises(OSError, match="No space left"):
        handle.save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(os.listdir(folder)) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / CONFIG_FILE).read_bytes() == before[CONFIG_FILE]
    if (call, nth) != ("replace", 2):  # a rename takes no space, so this one stands for a pulled plug
        assert (folder / WEIGHTS_FILE).read_bytes() == before[WEIGHTS_FILE]
    handle.detach()
    attach(model, folder)


def test_a_full_disk_in_a_new_folder_leaves_no_half_file(handle, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        handle.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_files_get_the_usual_permissions(folder):
    (folder / "plain").write_text("")
    assert {(folder / name).stat().st_mode for name in (CONFIG_FILE, WEIGHTS_FILE, "plain")} == {
        (folder / "plain").stat().st_mode
    }


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "file"
    for data in (b"one", b"", b"three" * 1000):
        write_together(tmp_path, {"file": data})
        assert path.read_bytes() == data and os.listdir(tmp_path) == ["file"]


def test_an_interrupt_counts_as_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_together(tmp_path, {"file": b"old"})

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_together(tmp_path, {"file": b"new"})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


# Routers that ship ------------------------------------------------------------------------------------------------


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


# Static routes ----------------------------------------------------------------------------------------------------


def test_static_routes_round_trip(tmp_path):
    mask, scores = torch.rand(3, 2) < 0.5, torch.rand(3, 2)
    save_static_routes(tmp_path / "a", mask, {"logits": scores}, {"seed": 3})
    assert torch.equal(read_static_routes(str(tmp_path / "a")), mask)
    assert torch.equal(load_file(tmp_path / "a" / STATIC_FILE)["logits"], scores)
    with safe_open(tmp_path / "a" / STATIC_FILE, framework="pt") as reader:
        assert json.loads(reader.metadata()["facts"]) == {"seed": 3}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "has no static_routes"),
        (lambda path: path.write_bytes(b"\x80\x04abc"), "damaged or truncated"),
        (lambda path: save_file({"mask": torch.zeros(3, 2)}, path), "holds no bool tensor"),
        (lambda path: save_file({"head_is_sparse": torch.zeros(3, 2)}, path), "holds no bool tensor"),
        (lambda path: save_file({"head_is_sparse": torch.zeros(3, dtype=torch.bool)}, path), "holds no bool tensor"),
    ],
)
def test_damaged_static_routes(tmp_path, write, message):
    write(tmp_path / STATIC_FILE)
    with pytest.raises(AdapterError, match=message):
        read_static_routes(tmp_path)


def test_static_routes_into_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AdapterError, match="is a file"):
        save_static_routes(tmp_path / "file", torch.zeros(1, 1, dtype=torch.bool), {}, {})
