"""A training run small enough for a test, a tiny Llama, a tiny BPE and made rows; and how to read what it leaves."""

import json

import torch
from safetensors.torch import load_file

from elastic_attention.config import StreamingConfig
from elastic_attention.training.checkpoints import FILE
from elastic_attention.training.recipe import DataConfig, Interval, PackConfig, Recipe, RouteConfig
from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model

INTERVALS = {
    "single_qa": Interval(low=0.2, high=0.3),
    "few_shot": Interval(low=0.8, high=1.0),
    "code": Interval(low=0.8, high=1.0),
}


def make_recipe(folder=None, **overrides):
    """Four steps of two packs over records in `folder`, three categories; `packs` overrides the pack settings.

    Without a folder there are no records: a recipe to look at, not to run.
    """
    packs = {"tokens": 410, "per_step": 2, "lookahead": 4}
    if folder is not None:
        files = (write_rows(folder / f"{name}.jsonl", make_rows(n)) for name, n in (("train", 24), ("held", 6)))
        names = [(str(file),) for file in files]
        packs |= {"files": names[0], "heldout_files": names[1], "cache": str(folder / "cache")}
    settings = {
        "model": "tiny",
        "steps": 4,
        "intervals": INTERVALS,
        "data": DataConfig(packs=PackConfig(**(packs | overrides.pop("packs", {})))),
        "pattern": StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16),
        "routes": RouteConfig(init_std=0.5, pooled_tokens=8),
        "checkpoint_every": 1,
        "validate_every": 0,
        "precision": "float32",
    }
    return Recipe(**(settings | overrides))


def parts(family="llama"):
    """Model and tokenizer of a run; equal at every call."""
    model = make_model(family, vocab_size=600, max_position_embeddings=4096)
    return {"model": model, "tokenizer": make_tokenizer(), "device": "cpu"}


def read_tensors(folder):
    """Tensors of the last checkpoint."""
    return load_file(folder / FILE)


def read_log(folder):
    """Lines of the log; strict, so NaN is an error."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_equal_runs(one, other):
    """Two folders hold the same run, bit for bit."""
    a, b = read_tensors(one), read_tensors(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
