"""A handle that was detached, and budgets that are no numbers: refused at once, and nothing is disturbed."""

import numpy as np
import pytest
import torch

from elastic_attention import ElasticAttentionError, attach
from tiny_models import LAYERS, attach_tiny, text


def route(handle):
    with handle.routed_by(None):
        pass


def disable(handle):
    with handle.disabled():
        pass


@pytest.mark.parametrize(
    "method, use",
    [
        ("set_routes", lambda handle: handle.set_routes("sparse")),
        ("set_routes", lambda handle: handle.set_routes(None)),
        ("calibrate", lambda handle: handle.calibrate([text(111)])),
        ("routed_by", route),
        ("disabled", disable),
    ],
)
def test_a_detached_handle_refuses_what_it_cannot_do(model, handle, method, use):
    handle.detach()
    second = attach_tiny(model)
    with pytest.raises(ElasticAttentionError, match=rf"detached from its LlamaForCausalLM.* {method} .*attach\(model"):
        use(handle)
    assert not handle.has_given_routes and model.config._attn_implementation == "elastic"
    use(second)


def test_a_detached_handle_still_answers_and_saves(model, handle, tmp_path):
    handle.set_routes("sparse")
    model(text(111), use_cache=False)
    handle.detach()
    assert handle.report()["msr"] == [1.0]
    handle.save_pretrained(tmp_path)
    assert attach(model, tmp_path).config.routed_layers == handle.routed_layers


@pytest.mark.parametrize(
    "value, shown",
    [
        ("1.0", "budget='1.0' is"),
        (None, "budget=None is"),
        (True, "budget=True is"),
        (1j, "budget=1j is"),
        ([1.0], r"budget=\[1.0\] is"),
        (float("nan"), "budget=nan is"),
        (float("-inf"), "budget=-inf is"),
        pytest.param(10**400, "budget=1000000", id="past floats"),
        (torch.tensor(float("nan")), "budget=.*nan.* is"),
        (torch.tensor(True), "budget=.*True.* is"),
        (torch.tensor([1.0]), r"budget=tensor\(\[1.\]\) is"),
        (torch.zeros(LAYERS, 2), r"budget=tensor\(\[\[0., 0.\], \[0."),
        (np.zeros(2), r"budget=array\(\[0., 0.\]\) is"),
    ],
)
def test_a_budget_that_is_no_number_is_refused_at_once(handle, value, shown):
    handle.budget = 0.25
    with pytest.raises(ValueError, match=f"^{shown}.* no finite number; give one: 0 is what training found"):
        handle.budget = value
    assert handle.budget == 0.25  # what was set before still stands


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)])
def test_numbers_of_every_kind_are_a_budget(handle, value):
    handle.budget = value
    assert type(handle.budget) is float and handle.budget == 2.0
