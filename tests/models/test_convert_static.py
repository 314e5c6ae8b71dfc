"""Static masks and learned gates of other projects become static routes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from elastic_attention import AdapterError, attach
from elastic_attention.models.checkpoint import read_static_routes
from elastic_attention.models.convert import convert_checkpoint
from released_models import (
    KV_HEADS,
    LAYERS,
    backbone_tensors,
    write_release,
)
from tiny_models import make_model, text

LENGTH = 300  # longer than sink and window below
SMALL = dict(sink_size=128, local_window_size=128)
ROWS = [[1.0, 0.02], [0.49, 0.51], [0.0, 0.9]]


def write_table(folder, rows=ROWS, **config):
    folder.mkdir(exist_ok=True)
    path = folder / "full_attention_heads.tsv"
    path.write_text("".join("\t".join(f"{x:.18e}" for x in row) + "\n" for row in rows))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("as_folder", [True, False])
def test_duo_attention_table_becomes_static_routes(tmp_path, out, as_folder):
    path = write_table(tmp_path / "duo", sink_size=128, recent_size=256, deploy_sink_size=None)
    facts = convert_checkpoint(path.parent if as_folder else path, out)
    assert facts["kind"] == "duo_attention" and facts["msr"] == pytest.approx(0.5)
    assert facts["sparse_pattern"] == {"num_sink_tokens": 128, "local_window": 256, "block_size": 128}
    mask = read_static_routes(out)
    assert mask.tolist() == [[False, True], [True, False], [True, False]]
    model = make_model("qwen3")
    handle = attach(model, convert_adapter(tmp_path))
    handle.set_routes(mask)
    with torch.no_grad():
        model(text(LENGTH), use_cache=False)
    assert torch.equal(handle.report()["routes"][0], mask)


def convert_adapter(tmp_path):
    convert_checkpoint(write_release(tmp_path / "elastic", **SMALL), tmp_path / "routers")
    return tmp_path / "routers"


@pytest.mark.parametrize(("msr", "sparse"), [(0.0, 0), (1 / 3, 2), (2 / 3, 4), (1.0, 6)])
def test_a_share_keeps_the_fullest_heads(tmp_path, out, msr, sparse):
    convert_checkpoint(write_table(tmp_path / "duo"), out, msr=msr)
    mask, scores = read_static_routes(out), torch.tensor(ROWS)
    assert mask.sum() == sparse
    if 0 < sparse < 6:
        assert scores[mask].max() < scores[~mask].min()


def test_prulong_checkpoint_becomes_static_routes(tmp_path, out):
    tensors = backbone_tensors("llama")
    alphas = torch.tensor([[4.0, -3.0], [0.5, -0.1], [-9.0, 2.0]])
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.self_attn.attn_mask_log_alphas"] = alphas[i].bfloat16()
    options = dict(family="llama", tensors=tensors, enable_ada_sparsity=None, retrieval_mode=None, use_softmax=None)
    facts = convert_checkpoint(write_release(tmp_path / "src", **options), out)
    assert facts["kind"] == "prulong" and facts["sparse_pattern"]["local_window"] == 2048
    assert torch.equal(read_static_routes(out), alphas < 0)
    convert_checkpoint(write_release(tmp_path / "src2", suggested_sparsity=2 / 3, **options), out)
    assert read_static_routes(out).tolist() == [[False, True], [True, True], [True, False]]
    convert_checkpoint(write_release(tmp_path / "src3", suggested_sparsity=2 / 3, **options), out, msr=1 / 6)
    assert read_static_routes(out).sum() == 1


def test_switched_off_routers_leave_the_static_mask(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src", enable_ada_sparsity=False), out)
    assert facts["kind"] == "prulong" and not read_static_routes(out).any()  # log alpha 4.5 everywhere


def test_a_file_of_log_alphas(tmp_path, out):
    alphas = torch.randn(4, 3)
    save_file({"log_alpha": alphas}, tmp_path / "masks.safetensors")
    convert_checkpoint(tmp_path / "masks.safetensors", out)
    assert torch.equal(read_static_routes(out), alphas < 0)
    names = {f"model.layers.{i}.self_attn.attn_mask_log_alphas": alphas[i].clone() for i in range(4)}
    save_file(names, tmp_path / "layers.safetensors")
    convert_checkpoint(tmp_path / "layers.safetensors", tmp_path / "other")
    assert torch.equal(read_static_routes(tmp_path / "other"), alphas < 0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_text("1.0\tx\n"), "line 1: could not convert"),
        (lambda p: p.write_text("1.0\t0.5\n1.0\n"), "line 2: 2 finite numbers are expected"),
        (lambda p: p.write_text("1.0\tnan\n"), "line 1: 2 finite numbers"),
        (lambda p: p.write_text("1.0\tinf\n"), "line 1: 2 finite numbers"),
        (lambda p: p.write_text("\n\n"), "is empty"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as a table"),
    ],
)
def test_damaged_tables(tmp_path, out, write, message):
    path = tmp_path / "full_attention_heads.tsv"
    write(path)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(path, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"log_alpha": torch.full((2, 2), torch.nan)}, "finite float tensor"),
        ({"log_alpha": torch.zeros(4)}, "finite float tensor"),
        ({"log_alpha": torch.zeros(2, 2, dtype=torch.int64)}, "finite float tensor"),
        ({"weights": torch.zeros(2, 2)}, "holds no log alphas"),
        ({f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(2) for i in (0, 2)}, r"layers \[1\]"),
        ({f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(2 + i) for i in (0, 1)}, "has the shape"),
    ],
)
def test_damaged_log_alphas(tmp_path, out, tensors, message):
    save_file(tensors, tmp_path / "masks.safetensors")
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(tmp_path / "masks.safetensors", out)
    assert not out.exists()


def test_options_that_do_not_fit(tmp_path, out):
    table, folder = write_table(tmp_path / "duo", sink_size=128, recent_size=-1), write_release(tmp_path / "src")
    for source, options, message in (
        (folder, dict(msr=0.5), "msr=0.5 is for static masks"),
        (table, dict(msr=1.5), "msr=1.5 must be a ratio"),
        (table, dict(base=tmp_path), "without projections"),
        (table, {}, "recent_size must be a positive integer, got -1"),
    ):
        with pytest.raises(AdapterError, match=message):
            convert_checkpoint(source, out, **options)
    tensors = backbone_tensors() | {
        f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(5) for i in range(3)
    }
    with pytest.raises(AdapterError, match=r"log alphas are \(3, 5\).*\(3, 2\)"):
        convert_checkpoint(write_release(tmp_path / "p", tensors=tensors, enable_ada_sparsity=None), out)
    with pytest.raises(AdapterError, match="neither routers nor log alphas"):
        convert_checkpoint(write_release(tmp_path / "q", tensors=backbone_tensors()), out)
    assert not out.exists() and KV_HEADS == 2
