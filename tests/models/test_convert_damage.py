"""Damaged checkpoints and disks: every fault is named, and nothing half-made is left behind."""

import json
import os
import pickle

import pytest
import torch

from elastic_attention import AdapterError
from elastic_attention.models.convert import convert_checkpoint
from released_models import (
    ROUTER,
    backbone_tensors,
    extra_tensors,
    router_tensors,
    write_release,
)

WEIGHT = ROUTER.format(1, "cls_router_head_agnostic", 2, "weight")
FIRST = ROUTER.format(0, "cls_feat_extractor", 0, "weight")
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def edit_index(change):
    def damage(folder):
        data = json.loads((folder / INDEX).read_text())
        change(data)
        (folder / INDEX).write_text(json.dumps(data))

    return damage


def with_tensor(name, value):
    """The release with one tensor changed, or left out if the value is None."""

    def damage(folder):
        tensors = backbone_tensors() | router_tensors("elastic") | extra_tensors() | {name: value}
        write_release(folder, tensors={n: t for n, t in tensors.items() if t is not None})

    return damage


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(keep * 1000)])


def map_to(shard):
    return edit_index(lambda data: data["weight_map"].update({WEIGHT: shard}))


def replace_by_pickle(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


DAMAGE = {
    "shard missing": (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
    "shard truncated": (cut(SHARD, 1.0), f"{SHARD} is damaged or truncated"),
    "shard empty": (cut(SHARD, 0), f"{SHARD} is damaged or truncated"),
    "shard a pickle": (lambda f: (f / SHARD).write_bytes(pickle.dumps({})), f"{SHARD} is damaged"),
    "only a pickle": (replace_by_pickle, "pytorch_model.bin, which is a pickle and is never loaded"),
    "no weights": (lambda f: [p.unlink() for p in f.glob("*.safetensors*")], "has neither"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config truncated": (cut("config.json", 0.1), "config.json is no valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    "config too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "no valid JSON"),
    "index truncated": (cut(INDEX, 0.1), "index.json is no valid JSON"),
    "index empty": (edit_index(lambda d: d.update(weight_map={})), "has no weight_map"),
    "index of another form": (edit_index(lambda d: d.update(weight_map=[1])), "has no weight_map"),
    "entry missing": (edit_index(lambda d: d["weight_map"].pop(WEIGHT)), "does not list"),
    "entry of nothing": (edit_index(lambda d: d["weight_map"].update({"more": SHARD})), f"{SHARD} misses .'more'."),
    "entry in another shard": (map_to("model-00009-of-00003.safetensors"), "does not list|is missing"),
    "path upwards": (map_to("../secret.safetensors"), r"'../secret.safetensors', which is no safetensors file beside"),
    "path from the root": (map_to("/etc/passwd"), "'/etc/passwd', which is no safetensors file"),
    "not safetensors": (map_to("model.bin"), "'model.bin', which is no safetensors file"),
    "no name": (map_to(7), "7, which is no safetensors file"),
    "wrong shape": (with_tensor(WEIGHT, torch.zeros(16, 63)), r"has the shape \(16, 63\), expected \(16, 64\)"),
    "wrong rank": (with_tensor(FIRST, torch.zeros(64)), "must be matrices"),
    "no rows": (with_tensor(FIRST, torch.zeros(0, 16)), "must be matrices"),
    "three logits": (
        with_tensor(ROUTER.format(0, "cls_router_head_agnostic", 4, "weight"), torch.zeros(3, 16)),
        "has 3 logits; known are 2 and 1",
    ),
    "odd width": (
        with_tensor(ROUTER.format(0, "cls_feat_extractor", 2, "weight"), torch.zeros(24, 64)),
        "ends in 24 features for heads of 16",
    ),
    "NaN": (with_tensor(WEIGHT, torch.full((16, 64), torch.nan)), f"{WEIGHT} holds NaN"),
    "infinity": (with_tensor(WEIGHT, torch.full((16, 64), torch.inf)), f"{WEIGHT} holds NaN, infinities"),
    "integers": (with_tensor(WEIGHT, torch.zeros(16, 64, dtype=torch.int8)), "no floats .torch.int8"),
    "tensor missing": (with_tensor(WEIGHT, None), r"router of layer 1 lacks \['router_mlp.2.weight'\]"),
    "tensor too many": (
        with_tensor(ROUTER.format(1, "cls_feat_extractor", 4, "weight"), torch.zeros(2)),
        r"in excess \['task_mlp.4.weight'\]",
    ),
    "unknown tensor": (with_tensor("model.layers.0.self_attn.g_proj.weight", torch.zeros(2)), "g_proj.*refused"),
    "unknown beside the routers": (
        with_tensor("model.layers.0.self_attn.mask_allocator.gate.weight", torch.zeros(2)),
        "mask_allocator.gate.weight.*refused",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_nothing_is_written(tmp_path, out, case):
    damage, message = DAMAGE[case]
    folder = write_release(tmp_path / "src")
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(folder, out)
    assert not out.exists()


def test_a_full_disk_leaves_the_old_adapter(tmp_path, out, monkeypatch):
    convert_checkpoint(write_release(tmp_path / "src"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        convert_checkpoint(write_release(tmp_path / "other", "flux"), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_source_that_is_not_there(tmp_path, out):
    with pytest.raises(AdapterError, match="There is no model folder"):
        convert_checkpoint(tmp_path / "absent", out)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(AdapterError, match="neither a folder nor a .tsv or .safetensors"):
        convert_checkpoint(tmp_path / "notes.txt", out)
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        convert_checkpoint(write_release(tmp_path / "src"), tmp_path / "notes.txt")


def test_a_hub_id_fetches_safetensors_alone(tmp_path, out, monkeypatch):
    import huggingface_hub

    folder, asked = write_release(tmp_path / "hub"), {}

    def answer(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    assert convert_checkpoint("someone/model", out)["source"] == "someone/model"
    assert asked["repo_id"] == "someone/model"
    assert set(asked["allow_patterns"]) == {
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "full_attention_heads.tsv",
    }
