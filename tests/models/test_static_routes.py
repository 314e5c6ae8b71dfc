"""Files with one mask for all inputs."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elastic_attention import AdapterError
from elastic_attention.models.checkpoint import (
    STATIC_FILE,
    read_static_routes,
    save_static_routes,
)


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
