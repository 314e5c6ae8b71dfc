"""A training run small enough for a test: a tiny Llama, word tokens, the texts inside the package."""

from elastic_attention.config import StreamingConfig
from elastic_attention.training.recipe import DataConfig, Interval, Recipe, RouteConfig
from hash_tokenizer import HashTokenizer
from tiny_models import make_model


def make_recipe(**overrides):
    """Four steps over two kinds, both categories."""
    settings = {
        "model": "tiny",
        "steps": 4,
        "intervals": {"sensitive": Interval(low=0.4, high=0.5), "robust": Interval(low=0.8, high=1.0)},
        "data": DataConfig(kinds=("needle", "classes"), lengths=(512,), tokens_per_step=2048),
        "pattern": StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16),
        "routes": RouteConfig(init_std=0.5, pooled_tokens=8),
        "checkpoint_every": 1,
        "validate_every": 0,
        "validation_samples": 1,
        "precision": "float32",
    }
    return Recipe(**(settings | overrides))


def parts():
    """Model and tokenizer of a run; equal at every call."""
    return {"model": make_model("llama", max_position_embeddings=4096), "tokenizer": HashTokenizer(), "device": "cpu"}
