"""Patterns and sizes of an adapter come from the configuration of the checkpoint; what is unknown is refused."""

import pytest

from elastic_attention import AdapterError, StreamingConfig
from elastic_attention.config import BaseModel, TriangleConfig, XAttentionConfig
from elastic_attention.models.checkpoint import load_adapter
from elastic_attention.models.convert import convert_checkpoint
from released_models import (
    extra_tensors,
    router_tensors,
    write_release,
)

XA = XAttentionConfig(block_size=128, stride=16, threshold=0.9)


@pytest.mark.parametrize(
    ("changes", "sparse", "full"),
    [
        ({}, StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128), "full"),
        (dict(sink_size=64, local_window_size=1000), StreamingConfig(local_window=1024), "full"),
        (dict(toggle_type="xattn"), XA, "full"),
        (
            dict(toggle_type="xattn", xattn_threshold=0.8, xattn_stride=8),
            XAttentionConfig(stride=8, threshold=0.8),
            "full",
        ),
        (dict(retrieval_mode="xattn"), StreamingConfig(), XA),
        (dict(toggle_type="triangle"), TriangleConfig(), "full"),
        (dict(toggle_type="triangle", triangle_n_last=64), TriangleConfig(num_last_queries=64), "full"),
        (dict(pooling_mode=None, use_softmax=None), StreamingConfig(), "full"),
    ],
)
def test_patterns_come_from_the_config(tmp_path, out, changes, sparse, full):
    convert_checkpoint(write_release(tmp_path / "src", **changes), out)
    config, _ = load_adapter(out)
    assert (config.sparse_pattern, config.full_pattern) == (sparse, full)
    shape = dict(model_type="qwen3", num_layers=3, num_q_heads=6, num_kv_heads=2, head_dim=16)
    assert config.base_model == BaseModel(name=None, revision=None, **shape) and config.routed_layers == (0, 1, 2)


def test_head_dim_may_follow_from_the_hidden_size(tmp_path, out):
    tensors = {n: t for n, t in (router_tensors("elastic") | extra_tensors()).items()}
    convert_checkpoint(write_release(tmp_path / "src", tensors=tensors, head_dim=None, hidden_size=96), out)
    assert load_adapter(out)[0].base_model.head_dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(toggle_type="topk"), "toggle_type='topk' is not supported.*'streaming', 'xattn' and 'triangle'"),
        (dict(toggle_type="none"), "toggle_type='none'"),
        (dict(toggle_type=None), "toggle_type=None"),
        (dict(retrieval_mode="triangle"), "retrieval_mode='triangle'.*'full' and 'xattn'"),
        (dict(retrieval_mode="xattn", toggle_type="xattn"), "'xattn' needs 'streaming'"),
        (dict(pooling_mode="first_token"), "pooling_mode='first_token'.*'ctx_q'"),
        (dict(use_softmax=False), "use_softmax=False in config.json, but the router has 2 logits"),
        (dict(use_softmax="yes"), "use_softmax must be true or false, got 'yes'"),
        (dict(sink_size="128"), "sink_size must be a positive integer, got '128'"),
        (dict(local_window_size=None), "local_window_size must be a positive integer, got None"),
        (dict(num_hidden_layers=0), "num_hidden_layers must be a positive integer, got 0"),
        (dict(num_hidden_layers=4), r"disagree about the layers \[3\]"),
        (dict(num_hidden_layers=2), r"disagree about the layers \[2\]"),
        (dict(head_dim=8), "cls_feat_extractor.0.weight has the shape .64, 16., expected .64, 8.|ends in 16 features"),
        (dict(pool_size=-1), "pool_size must be a positive integer"),
        (dict(block_size=64), "block_size=64 is not supported"),
        (dict(xattn_norm=2), "xattn_norm=2"),
        (dict(xattn_stride=12, toggle_type="xattn"), "config.json: stride must be a power of two.*got 12"),
        (dict(xattn_threshold=1.5), "xattn_threshold must be a ratio"),
        (dict(architectures=["MambaForCausalLM"]), "MambaForCausalLM.*PawQwen3ForCausalLM"),
        (dict(architectures=["Qwen3ForCausalLM"]), "A stock model has no routers.*MoBA"),
        (dict(model_type="llama"), "model_type='llama'"),
        (dict(architectures=[]), r"architectures=\[\]"),
        (dict(architectures=[[]]), r"architectures=\[\[\]\]"),
        (dict(architectures={"a": 1}), "architectures="),
    ],
)
def test_what_is_unknown_is_refused_by_name(tmp_path, out, changes, message):
    folder = write_release(tmp_path / "src", **changes)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(folder, out)
    assert not out.exists()
