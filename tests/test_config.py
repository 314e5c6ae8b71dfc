"""Strict configurations: round trips, unknown keys, wrong types, and the defaults by context length."""

import dataclasses
import json

import pytest

from elastic_attention import ElasticConfig, RouterConfig, StreamingConfig
from elastic_attention.config import TriangleConfig, XAttentionConfig
from elastic_attention.settings import from_dict, read_toml, to_dict
from tiny_models import elastic_config, make_model


@pytest.fixture(scope="module")
def config():
    return elastic_config(make_model())


def test_round_trip_through_json(config):
    data = json.loads(json.dumps(to_dict(config)))
    assert from_dict(ElasticConfig, data) == config
    assert data["format_version"] == 1 and data["routed_layers"] == [0, 1, 2]


PATTERNS = [
    dict(sparse_pattern=StreamingConfig(), full_pattern=XAttentionConfig(threshold=0.8)),
    dict(sparse_pattern=XAttentionConfig(stride=8, density=0.25)),
    dict(sparse_pattern=TriangleConfig(num_last_queries=64)),
]


@pytest.mark.parametrize("patterns", PATTERNS, ids=["XA-SSA", "FA-XA", "FA-TA"])
def test_every_mode_pair_survives_a_file(config, patterns):
    changed = dataclasses.replace(config, **patterns)
    data = json.loads(json.dumps(to_dict(changed)))
    assert from_dict(ElasticConfig, data) == changed
    assert ElasticConfig.for_model(make_model(), **patterns, pooled_tokens=10, init_std=0.5) == changed
    for name, pattern in patterns.items():
        assert pattern.kind == data[name].get("kind", "streaming")
        with pytest.raises(dataclasses.FrozenInstanceError):
            pattern.block_size = 1


def test_files_without_a_choice_of_patterns_stay_as_they_were(config):
    data = to_dict(config)
    assert data["sparse_pattern"] == {"num_sink_tokens": 16, "local_window": 32, "block_size": 16}
    assert data["full_pattern"] == "full"
    data["sparse_pattern"]["kind"] = "streaming"
    assert from_dict(ElasticConfig, data) == config
    data["full_pattern"] = {}
    assert from_dict(ElasticConfig, data).full_pattern == XAttentionConfig()


@pytest.mark.parametrize("sparse", [XAttentionConfig(), TriangleConfig()])
def test_xattention_as_full_pattern_needs_streaming(config, sparse):
    with pytest.raises(ValueError, match="needs a StreamingConfig"):
        dataclasses.replace(config, sparse_pattern=sparse, full_pattern=XAttentionConfig())


def test_sizes_and_a_pattern_exclude_each_other():
    with pytest.raises(ValueError, match="has its own sizes"):
        ElasticConfig.for_model(make_model(), sparse_pattern=StreamingConfig(), local_window=128)


def test_frozen_slotted_and_keyword_only(config):
    for item in (config, config.router, config.sparse_pattern, config.base_model):
        assert not hasattr(item, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, dataclasses.fields(item)[0].name, 1)
        with pytest.raises(TypeError, match="positional"):
            type(item)(1)


def change(data, path, value):
    *parents, last = path.split(".")
    for name in parents:
        data = data[name]
    if value is KeyError:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("surprise", 1, "unknown keys.*surprise"),
        ("router.surprise", 1, r"ElasticConfig\.router has unknown keys.*surprise.*head_dim"),
        ("router.head_dim", KeyError, "misses the keys.*head_dim"),
        ("base_model", KeyError, "misses the keys.*base_model"),
        ("router", [1], "router must be a table"),
        ("router.head_dim", "16", r"router\.head_dim must be int, got '16'"),
        ("router.head_dim", 16.0, "must be int, got 16.0"),
        ("router.head_dim", True, "must be int, got True"),
        ("router.head_dim", 0, "head_dim must be at least 1, got 0"),
        ("router.pooled_tokens", -1, "pooled_tokens must be at least 1"),
        ("router.count_overlap_twice", 1, "must be bool, got 1"),
        ("router.init_std", "wide", "must be float"),
        ("sparse_pattern.local_window", 100, "local_window=100"),
        ("base_model.name", 5, r"base_model\.name must be str, got 5"),
        ("routed_layers", "all", "routed_layers must be list"),
        ("routed_layers", [0, "1"], r"routed_layers\[1\] must be int"),
        ("routed_layers", [0, 3], r"routed_layers.*\[3\] are not"),
        ("routed_layers", [-1], r"\[-1\] are not"),
        ("routed_layers", [], "routed_layers"),
        ("granularity", "token", "granularity='token'.*'head'"),
        ("full_pattern", "xattention", "full_pattern='xattention'"),
        ("full_pattern", 3, "full_pattern must be str, got 3"),
        ("full_pattern", {"threshold": 2.0}, "threshold must lie in"),
        ("full_pattern", {"kind": "triangle"}, r"full_pattern\.kind='triangle'.*\['xattention'\]"),
        ("sparse_pattern", {"kind": "dense"}, r"sparse_pattern\.kind='dense'.*'streaming'.*'xattention'"),
        ("sparse_pattern", {"kind": ["triangle"]}, r"sparse_pattern\.kind=\['triangle'\]"),
        ("sparse_pattern", {"threshold": 0.5}, r"sparse_pattern has unknown keys \['threshold'\]"),
        ("sparse_pattern", {"kind": "xattention", "local_window": 128}, r"unknown keys \['local_window'\]"),
        ("sparse_pattern", {"kind": "xattention", "stride": "16"}, r"sparse_pattern\.stride must be int"),
        ("sparse_pattern", "streaming", "sparse_pattern must be a table"),
        ("format_version", 2, "format_version=2.*Upgrade"),
        ("training", 3, "training must be dict"),
    ],
)
def test_every_wrong_value_is_named(config, path, value, message):
    data = to_dict(config)
    change(data, path, value)
    with pytest.raises(ValueError, match=message):
        from_dict(ElasticConfig, data)


def test_integers_are_welcome_where_a_float_is_wanted(config):
    data = to_dict(config)
    data["router"]["init_std"] = 1
    assert from_dict(ElasticConfig, data).router.init_std == 1.0


def test_router_sizes_are_the_papers():
    config = RouterConfig.for_head_dim(128)
    assert (config.task_hidden, config.task_width, config.router_hidden, config.router_width) == (512, 128, 512, 128)
    assert config.pooled_tokens == 100 and not config.count_overlap_twice
    assert RouterConfig.for_head_dim(64, router_hidden=7).router_hidden == 7


@pytest.mark.parametrize(
    "context, sizes",
    [
        (2048, (64, 512, 64)),
        (8192, (64, 512, 64)),
        (8193, (128, 1024, 128)),
        (32768, (128, 1024, 128)),
        (40960, (128, 2048, 128)),
    ],
)
def test_pattern_follows_the_context_length(context, sizes):
    pattern = ElasticConfig.for_model(make_model(max_position_embeddings=context)).sparse_pattern
    assert (pattern.num_sink_tokens, pattern.local_window, pattern.block_size) == sizes


def test_for_model_overrides_and_shape():
    model = make_model("phi3")
    config = ElasticConfig.for_model(model, num_sink_tokens=32, local_window=64, block_size=32, pooled_tokens=5)
    assert config.sparse_pattern == StreamingConfig(num_sink_tokens=32, local_window=64, block_size=32)
    base = config.base_model
    assert (base.model_type, base.num_layers, base.num_q_heads, base.num_kv_heads, base.head_dim) == (
        "phi3",
        3,
        6,
        2,
        8,
    )
    assert config.router.head_dim == 8 and config.router.pooled_tokens == 5
    with pytest.raises(ValueError, match="local_window=100"):
        ElasticConfig.for_model(model, local_window=100)
    with pytest.raises(ValueError, match="granularity='layers'"):
        ElasticConfig.for_model(model, granularity="layers")


def test_read_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[a]\nb = 1\n")
    assert read_toml(path) == {"a": {"b": 1}}
    path.write_text("[a\n")
    with pytest.raises(ValueError, match=r"recipe\.toml.*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"recipe\.toml"):
        read_toml(path)
    with pytest.raises(FileNotFoundError):
        read_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize("name", ["num_sink_tokens", "local_window", "block_size"])
def test_zero_is_an_error_not_a_default(name):
    with pytest.raises(ValueError, match=name):
        ElasticConfig.for_model(make_model(), **{name: 0})
