"""What the host costs: full packs, and the command on a tiny model."""

import small_models
import torch

from elastic_attention.evaluation.session import Base
from elastic_attention.records import read_record
from tiny_models import attach_tiny, make_model


def test_a_pack_is_full_and_its_weights_add_up_to_one():
    pack = small_models.make_pack(20_000)
    assert len(pack.input_ids) == 20_000 and pack.weights.sum() == 1
    assert pack.cu_seqlens.diff().tolist() == [8000, 4096, 2048, 1024, 4832]


def test_the_command_measures_both_ways_and_every_pack(tmp_path, monkeypatch):
    model = make_model(vocab_size=40_000)
    base = Base(name="tiny", model=model, tokenizer=None, device=torch.device("cpu"), dtype=torch.float32, context=512)
    monkeypatch.setattr(small_models, "open_base", lambda name: base)
    monkeypatch.setattr(small_models, "attach", attach_tiny)
    path = tmp_path / "small.json"
    sizes = ["--prompts", "2", "--tokens", "120", "--new-tokens", "3", "--packs", "300", "200", "--times", "1"]
    assert small_models.main([*sizes, "--json", str(path)]) == 0
    metrics = read_record(path)["metrics"]
    assert [row["way"] for row in metrics["decoding"]] == ["plain", "replayed"]
    assert all(row["is_same"] and row["answer_seconds"] > 0 for row in metrics["decoding"])
    assert [row["pack_tokens"] for row in metrics["training"]] == [300, 200]
    assert all(row["tokens_per_second"] > 0 for row in metrics["training"])
