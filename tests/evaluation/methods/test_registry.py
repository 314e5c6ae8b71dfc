"""Names, constants of the papers, and words for what is wrong."""

import re
from pathlib import Path

import pytest

from elastic_attention import (
    AdapterError,
    ElasticAttentionError,
    StreamingConfig,
    TriangleConfig,
    XAttentionConfig,
)
from elastic_attention.evaluation.methods import (
    LEFT_OUT,
    METHODS,
    Method,
    attach_method,
    find_method,
    settle_method,
)
from elastic_attention.evaluation.plan import parse_method
from elastic_attention.models.checkpoint import save_static_routes
from elastic_attention.patterns import InfllmConfig, MobaConfig, build_pattern
from elastic_attention.sparsity import count_causal_pairs
from tiny_models import attach_tiny, random_routes

CONSTANTS = {
    "xattention": XAttentionConfig(block_size=128, stride=16, threshold=0.9),
    "triangle_mix": TriangleConfig(num_sink_tokens=16, local_window=512, block_size=16, num_last_queries=128),
    "moba": MobaConfig(block_size=1024, num_blocks=8),
    "infllm_v2": InfllmConfig(
        block_size=64,
        local_window=2048,
        num_blocks=64,
        num_sink_blocks=1,
        pooled_tokens=32,
        pooling_stride=16,
        dense_tokens=8192,
    ),
}


def test_constants_of_the_papers():
    assert {name: kind.pattern for name, kind in METHODS.items() if kind.pattern} == CONSTANTS
    assert all(METHODS[name].decode == "full" for name in CONSTANTS)


def test_methods_prescribe_their_decoding():
    assert settle_method(Method(name="moba")).decode == "full"
    assert settle_method(Method(name="all_sparse")).decode == "sparse"
    assert settle_method(Method(name="fa_xa", folder="x")).decode == "full"
    assert settle_method(Method(name="xa_ssa", folder="x")).decode == "sparse"
    assert parse_method("triangle_mix").decode == "full"
    assert parse_method("duo_attention@0.5=masks/a").label == "duo_attention@0.500"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("magic", "method 'magic' is unknown; choose one of dense, all_sparse"),
        ("nsa", "method 'nsa' is left out: its compression network"),
        ("random", "method 'random' needs a share of sparse heads: write random@0.7"),
        ("flux", "method 'flux' needs the folder of its adapter: write flux=FOLDER"),
        ("prulong", "method 'prulong' needs the folder of its mask: write prulong=FOLDER"),
    ],
)
def test_wrong_words_are_refused_before_a_model_is_loaded(word, message):
    with pytest.raises(ElasticAttentionError, match=message):
        parse_method(word)


def test_summaries_fit_a_line():
    assert all(0 < len(kind.summary) <= 110 for kind in METHODS.values()) and not set(LEFT_OUT) & set(METHODS)


ORIGINS = [
    (dict(kind="prulong"), "prulong"),
    (dict(kind="duo_attention"), "duo_attention"),
    (dict(kind="retrieval_heads"), "retrieval_heads"),
    (dict(recipe=dict(routes=dict(source="hard_concrete"))), "prulong"),
    (dict(recipe=dict(routes=dict(source="alpha"))), "duo_attention"),
    (dict(recipe=dict(routes=dict(source="static"))), None),
    (dict(kind="table"), None),
    ({}, None),
]


@pytest.mark.parametrize(("facts", "origin"), ORIGINS)
def test_masks_go_under_their_own_name(model, tmp_path, facts, origin):
    save_static_routes(tmp_path, random_routes(model), {}, facts)
    for name in ("static", "prulong", "duo_attention", "retrieval_heads"):
        method = Method(name=name, folder=str(tmp_path))
        if name in ("static", origin) or origin is None:
            attach_method(method, model).detach()
        else:
            with pytest.raises(AdapterError, match=f"is no mask of {name!r}.*static=FOLDER"):
                attach_method(method, model)


def test_masks_and_adapters_are_told_apart(model, tmp_path):
    save_static_routes(tmp_path / "mask", random_routes(model), {}, {})
    handle = attach_tiny(model)
    handle.save_pretrained(tmp_path / "adapter")
    handle.detach()
    with pytest.raises(AdapterError, match="mask is no adapter of 'fa_ssa'"):
        attach_method(Method(name="fa_ssa", folder=str(tmp_path / "mask")), model)
    with pytest.raises(AdapterError, match="adapter is no mask of 'static'"):
        attach_method(Method(name="static", folder=str(tmp_path / "adapter")), model)
    with pytest.raises(AdapterError):
        attach_method(Method(name="static", folder=str(tmp_path / "absent")), model)
    assert model.config._attn_implementation == "sdpa"


def test_attaching_and_detaching_leaves_the_model_alone(model):
    handle = attach_method(Method(name="moba"), model)
    assert find_method(Method(name="moba")).choose(Method(name="moba"), handle)([0, 1]) == "sparse"
    handle.detach()
    assert model.config._attn_implementation == "sdpa"


def test_the_page_on_methods_lists_them_all_and_its_figures_are_right():
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"| `{name}" in page or f", `{name}" in page, name
    assert all(name.upper() in page for name in LEFT_OUT)
    figures = dict(re.findall(r"^\| `(\w+)`[^|]*\| (0\.\d+ \| 0\.\d+ \| 0\.\d+) \|$", page, re.MULTILINE))
    assert set(figures) == {"all_sparse", "triangle_mix", "moba", "infllm_v2"}
    for name, row in figures.items():
        pattern, ratios = build_pattern(METHODS[name].pattern or StreamingConfig()), []
        for length in (8192, 32768, 131072):
            ends = (length,) if name == "triangle_mix" else ()
            hidden = 1 - pattern.count_pairs(0, length, *ends) / count_causal_pairs(0, length)
            ratios.append(f"{hidden / 2 if name == 'triangle_mix' else hidden:.3f}")
        assert row == " | ".join(ratios), name
