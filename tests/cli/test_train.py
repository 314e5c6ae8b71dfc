"""`elastic-attn train` as its reader sees it: what it says before, what it leaves, how it goes on."""

import json

import pytest

from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model

RECIPE = """
model = "model"
steps = 3
precision = "float32"
validate_every = 0
[data.packs]
files = ["train.jsonl"]
heldout_files = ["heldout.jsonl"]
tokens = 600
per_step = 2
cache = "cache"
[pattern]
num_sink_tokens = 16
local_window = 32
block_size = 16
[intervals]
code = { low = 0.8, high = 1.0 }
single_qa = { low = 0.2, high = 0.3 }
"""


@pytest.fixture
def folder(tmp_path):
    make_model(vocab_size=600, max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", make_rows(12, categories=("code", "single_qa")))
    write_rows(tmp_path / "heldout.jsonl", make_rows(6, categories=("code", "single_qa", "news")))
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path


def test_a_run_its_stop_and_its_end(folder, call):
    code, out, err = call("train", "small.toml", "--device", "cpu", "--max-seconds", "0")
    assert code == 0 and "1 of 3 steps in runs/small: stopped; run it again to go on" in out
    assert "Routers: runs/small/adapter-so-far" in out and "held out" not in out
    assert "Samples: 6 code, 6 single_qa, of" in err and "Stopped after 1 of 3 steps: the time is up." in err
    code, out, err = call("train", "small.toml", "--device", "cpu", "--json", "record.json")
    assert code == 0 and "3 of 3 steps in runs/small: finished" in out and "Going on after step 1 of 3." in err
    assert "Routers: runs/small/adapter\n" in out and "Curves: runs/small/curves.svg" in out
    table = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "0.80–1.00" in table["code"] and "–" not in table["news"]  # a held-out category may have no interval
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert (
        metrics["is_finished"]
        and metrics["skipped_steps"] == 0
        and "outside" in metrics["validation"]["categories"]["code"]
    )
    code, _, err = call("train", "small.toml", "--device", "cpu", "--output", "small.toml")
    assert code == 2 and "small.toml is a file" in err


def test_skipped_steps_are_told(folder, call, monkeypatch):
    from elastic_attention.training.engine import Engine

    states = Engine.hidden_states
    monkeypatch.setattr(Engine, "hidden_states", lambda self, pack: states(self, pack) * float("nan"))
    (folder / "skip.toml").write_text('extends = "small.toml"\non_nan = "skip"\nsteps = 2\n')
    code, out, _ = call("train", "skip.toml", "--device", "cpu")
    assert code == 0 and "2 steps were left out" in out
    code, out, err = call("train", "small.toml", "--device", "cpu")
    assert code == 2 and "Step 1: loss nan" in err and "train.jsonl:" in err and "on_nan = 'skip'" in err
