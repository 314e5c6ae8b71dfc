"""A folder with a static mask attaches like routers; what is given to layer adapters agrees over the heads."""

import pytest
import torch

from elastic_attention import (
    AdapterError,
    RouterMismatch,
    StreamingConfig,
    UnsupportedModel,
    XAttentionConfig,
    attach,
    read_static_routes,
)
from elastic_attention.models.checkpoint import save_static_routes
from elastic_attention.settings import to_dict
from tiny_models import attach_tiny, elastic_config, make_model, random_routes, text

PATTERN = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
FACTS = {"sparse_pattern": to_dict(PATTERN), "full_pattern": "full", "kind": "test"}


def save(folder, mask, facts=FACTS):
    save_static_routes(folder, mask, {}, facts)
    return folder


def routes_of(handle, length=111):
    with torch.no_grad():
        handle.model(text(length), use_cache=False)
    return handle.report()["routes"][0]


def test_a_mask_decides_for_every_sequence(model, tmp_path):
    mask = random_routes(model)
    handle = attach(model, save(tmp_path / "mask", mask))
    assert handle.config.sparse_pattern == PATTERN and handle.is_static
    assert torch.equal(routes_of(handle), mask) and torch.equal(routes_of(handle, 20), mask)
    handle.set_routes("full")
    assert not routes_of(handle).any()
    handle.set_routes(None)
    assert torch.equal(routes_of(handle), mask)
    with pytest.raises(ValueError, match="no budget"):
        handle.calibrate([text(111)])


def test_the_mask_is_that_of_set_routes(model, tmp_path):
    mask = random_routes(model)
    handle = attach(model, save(tmp_path / "mask", mask))
    found = model.generate(text(80), max_new_tokens=6, do_sample=False)
    handle.detach()
    handle = attach_tiny(model)
    handle.set_routes(mask)
    assert torch.equal(model.generate(text(80), max_new_tokens=6, do_sample=False), found)


def test_save_and_attach_again(tmp_path):
    model = make_model()
    mask = random_routes(model)
    handle = attach(model, save(tmp_path / "mask", mask, FACTS | {"full_pattern": to_dict(XAttentionConfig())}))
    handle.save_pretrained(tmp_path / "again")
    handle.detach()
    handle = attach(model, tmp_path / "again")
    assert torch.equal(read_static_routes(tmp_path / "again"), mask)
    assert handle.config.full_pattern == XAttentionConfig() and handle.config.training["kind"] == "test"


def test_a_mask_without_a_pattern_takes_the_default_and_says_so(model, tmp_path, caplog):
    handle = attach(model, save(tmp_path / "mask", random_routes(model), {"sparse_pattern": None}))
    assert "does not say what sparse heads read; taking StreamingConfig" in caplog.text
    assert handle.config.sparse_pattern.local_window == 512


@pytest.mark.parametrize(
    ("shape", "facts", "error", "said"),
    [
        ((4, 2), FACTS, RouterMismatch, r"\(4, 2\), the model has \(layers, KV heads\) = \(3, 2\)"),
        ((3, 6), FACTS, RouterMismatch, r"\(3, 6\)"),
        ((3, 2), {"sparse_pattern": {"kind": "dots"}}, AdapterError, "dots"),
        ((3, 2), {"full_pattern": 3}, AdapterError, "full_pattern"),
    ],
)
def test_masks_that_do_not_fit_are_refused(model, tmp_path, shape, facts, error, said):
    with pytest.raises(error, match=said):
        attach(model, save(tmp_path / "mask", torch.zeros(shape, dtype=torch.bool), facts))
    attach_tiny(model)  # nothing was left behind


def test_a_folder_with_neither_is_named(model, tmp_path):
    with pytest.raises(AdapterError, match="elastic_config.json"):
        attach(model, tmp_path)


# Layer adapters ---------------------------------------------------------------------------------------------------


def test_routes_of_a_layer_adapter_agree_over_the_heads(model):
    handle = attach_tiny(model, config=elastic_config(model, granularity="layer"))
    mixed = torch.tensor([[True, True], [False, True], [True, False]])
    with pytest.raises(ValueError, match=r"within the layers \[1, 2\]"):
        handle.set_routes(mixed)
    with pytest.raises(ValueError, match=r"within the layers \[1, 2\]"):
        handle.set_routes(torch.stack([mixed, torch.ones_like(mixed)]))
    handle.set_routes(mixed[:, :1].expand(-1, 2))
    assert torch.equal(routes_of(handle), mixed[:, :1].expand(-1, 2))
    assert handle.decide(1, torch.zeros(4, 1, 16)).shape == (4, 1)


def test_queries_that_a_layer_router_cannot_read_are_refused_at_attach():
    model = make_model()
    module = model.model.layers[2].self_attn
    module.q_proj = torch.nn.Linear(48, 192)  # a gate beside the queries, as some families have it
    attach_tiny(model).detach()
    with pytest.raises(UnsupportedModel, match="q_proj.*192 features for 6 heads of 16"):
        attach_tiny(model, config=elastic_config(model, granularity="layer"))
