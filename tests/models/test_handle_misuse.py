"""Misuse of a handle or its model, in calls and in numbers: refused at once, and nothing is disturbed."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from elastic_attention import ElasticAttentionError, UnsupportedModel, attach
from tiny_models import LAYERS, attach_tiny, generate, text


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


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_whose_attention_was_changed_does_not_pass_for_routed(model, handle, implementation):
    model.set_attn_implementation(implementation)
    with pytest.raises(ElasticAttentionError, match=f"was set to '{implementation}' while routers are attached"):
        model(text(111), use_cache=False)
    with handle.disabled():
        base = model(text(111)).logits
    handle.detach()
    assert torch.equal(model(text(111)).logits, base)


def test_threads_that_generate_wait_for_each_other(model, handle):
    prompts = [text(111), text(70, seed=5), text(20), text(200, seed=6)]
    wanted = [generate(model, ids, max_new_tokens=12) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda ids: generate(model, ids, max_new_tokens=12), prompts * 8))
    assert all(torch.equal(answer, wanted[i % 4]) for i, answer in enumerate(answers))
    twin = copy.deepcopy(model)
    assert torch.equal(generate(twin, prompts[0], max_new_tokens=12), wanted[0])


@pytest.mark.parametrize(
    "ids, options, message",
    [
        (text(111)[0], {}, r"generate got \(111,\); pass input_ids as a tensor \(B, T\)"),
        ({"input_ids": text(111)}, {}, r"generate got dict; pass .* generate\(\*\*inputs\)"),
        (text(111), {"attention_mask": torch.ones(1, 120)}, r"attention_mask \(1, 120\) must .* \(1, 111\)"),
        (text(111), {"attention_mask": torch.ones(111)}, r"attention_mask \(111,\) must .* \(1, 111\)"),
    ],
)
def test_prompts_of_wrong_shapes_are_named(model, handle, ids, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, ids, **options)


def test_a_cache_of_other_sequences_is_named(model, handle):
    cache = DynamicCache(config=model.config)
    generate(model, text(111), past_key_values=cache)
    with pytest.raises(ValueError, match="The cache holds 1 sequences, but 2 were passed"):
        generate(model, text(200, rows=2), past_key_values=cache)


def test_a_compiled_model_is_refused_and_left_alone(model):
    with pytest.raises(UnsupportedModel, match="attach to the model itself, then compile it"):
        attach_tiny(torch.compile(model))
    assert attach_tiny(model)


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
