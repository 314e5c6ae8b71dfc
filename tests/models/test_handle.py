"""Attaching, options, given routes, the budget, and what is refused on the way."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, QuantizedLayer

from elastic_attention import (
    AdapterError,
    AlreadyAttached,
    BackendUnavailable,
    RouterMismatch,
    UnsupportedCache,
    attach,
    find_handle,
)
from tiny_models import LAYERS, attach_tiny, elastic_config, make_model, random_routes, text

GREEDY = dict(do_sample=False, max_new_tokens=6)


def test_a_handle_says_what_it_is_in_a_line(model, handle):
    assert repr(handle) == "<Handle of LlamaForCausalLM: 3 layers routed by head routers, decode='sparse'>"


def test_attach_twice(model, handle):
    with pytest.raises(AlreadyAttached, match=r"LlamaForCausalLM.*detach\(\)"):
        attach_tiny(model)
    with pytest.raises(AlreadyAttached, match="LlamaModel"):  # the same layers without their head
        attach_tiny(model.model)
    handle.detach()
    attach_tiny(model).detach()


def test_detach_twice(model, handle):
    handle.detach()
    second = attach_tiny(model)
    handle.detach()  # must not disturb the new one
    assert find_handle(model) is second and model.config._attn_implementation == "elastic"
    second.set_routes("sparse")
    model(text(111), use_cache=False)
    assert second.report()["msr"] == [1.0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_detach_restores_the_implementation(implementation):
    model = make_model()
    model.set_attn_implementation(implementation)
    before = model(text(111)).logits
    attach_tiny(model).detach()
    assert model.config._attn_implementation == implementation and torch.equal(model(text(111)).logits, before)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(decode="dense"), ValueError, "decode='dense'.*'sparse', 'full'"),
        (dict(prefill_policy="eager"), ValueError, "prefill_policy='eager'.*'deferred'"),
        (dict(first_chunk_tokens=0), ValueError, "first_chunk_tokens=0"),
        (dict(backend="fa9"), BackendUnavailable, "backend='fa9'.*'cpu'"),
    ],
)
def test_unknown_options_leave_the_model_alone(model, options, error, message):
    with pytest.raises(error, match=message):
        attach_tiny(model, **options)
    assert find_handle(model) is None and model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    attach_tiny(model)


def test_no_routers_ship_for_a_random_model(model):
    with pytest.raises(AdapterError, match=r"No routers ship for llama.*for_model"):
        attach(model)


def test_routers_of_another_shape(model):
    for other in (dict(head_dim=8), dict(num_key_value_heads=3), dict(num_hidden_layers=2)):
        config = elastic_config(make_model(**other))
        with pytest.raises(RouterMismatch, match="do not fit: .*routers want .*the model has"):
            attach(model, config)
    with pytest.raises(RouterMismatch, match=r"routed layers: routers want \(0, 1, 2\), the model has \(\d.*\)\.$"):
        attach(make_model("gemma3_text"), elastic_config(make_model()))


def test_the_model_tree_does_not_contain_the_routers(model):
    names, parameters = set(model.state_dict()), sum(p.numel() for p in model.parameters())
    handle = attach_tiny(model)
    assert set(model.state_dict()) == names and sum(p.numel() for p in model.parameters()) == parameters
    assert not any(p.requires_grad for p in handle.routers.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_saving_the_base_model_while_attached(model, handle, tmp_path):
    from transformers import LlamaForCausalLM

    before = make_model()(text(111)).logits
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(text(111)).logits, before) and loaded.config._attn_implementation == "sdpa"


def test_a_detached_model_can_be_collected():
    model = make_model()
    attach_tiny(model).detach()
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# Routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "routes",
    [
        "dense",
        torch.zeros(LAYERS, 2),
        torch.zeros(LAYERS, 2, dtype=torch.long),
        torch.zeros(LAYERS, 6, dtype=torch.bool),
        torch.zeros(2, LAYERS, dtype=torch.bool),
        torch.zeros(LAYERS + 1, 2, dtype=torch.bool),
        torch.zeros(0, LAYERS, 2, dtype=torch.bool),
        torch.zeros(1, 1, LAYERS, 2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.bool),
        [[True, False]] * LAYERS,
        True,
        0.5,
    ],
)
def test_set_routes_refuses_other_words_shapes_and_dtypes(handle, routes):
    handle.set_routes("sparse")
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        handle.set_routes(routes)
    handle.model(text(111), use_cache=False)
    assert handle.report()["msr"] == [1.0]  # what was given before still stands


def test_set_routes_names_what_it_got(handle):
    with pytest.raises(ValueError, match=r"got torch.float32 \(3, 2\)\.$"):
        handle.set_routes(torch.zeros(LAYERS, 2))
    with pytest.raises(ValueError, match=r"got list\.$"):
        handle.set_routes([[True, False]] * LAYERS)


def test_routes_for_another_batch(model, handle):
    handle.set_routes(random_routes(model, batch=2))
    with pytest.raises(ValueError, match="2 prompts.*3 rows"):
        model.generate(text(111, rows=3), **GREEDY)
    model.generate(text(111, rows=2), **GREEDY)


def test_given_routes_are_copied(model, handle):
    routes = random_routes(model)
    handle.set_routes(given := routes.clone())
    given.fill_(False)
    model(text(111), use_cache=False)
    assert torch.equal(handle.report()["routes"][0], routes)


def test_layers_that_are_not_routed_ignore_their_routes():
    model = make_model("gemma3_text")
    handle = attach_tiny(model)
    handle.set_routes("sparse")
    model(text(111), use_cache=False)
    report = handle.report()
    assert report["msr"] == [1.0] and report["routes"][0].all(1).tolist() == [True, False, True]


@torch.no_grad()
def test_budget_is_monotone_per_layer_and_reaches_both_ends(model, handle):
    """For fixed pooled keys, which the first layer's always are."""
    previous = torch.zeros(8, 2, dtype=torch.bool)
    for budget in (-1e4, -20.0, -5.0, 0.0, 5.0, 20.0, 1e4):
        handle.budget = budget
        model(text(111, rows=8), use_cache=False)
        report = handle.report()
        routes = report["routes"][:, 0]
        assert not (previous & ~routes).any()
        previous = routes
        if abs(budget) > 100:
            assert report["msr"] == [float(budget > 0)] * 8


def test_disabled_nests_and_survives_errors(model, handle):
    handle.set_routes("sparse")
    base, routed = make_model()(text(111)).logits, model(text(111)).logits
    with handle.disabled():
        with handle.disabled():
            assert torch.equal(model(text(111)).logits, base)
        assert torch.equal(model(text(111)).logits, base)
        generated = model.generate(text(111), **GREEDY)
    assert torch.equal(model(text(111)).logits, routed)
    assert torch.equal(generated, make_model().generate(text(111), **GREEDY))
    with pytest.raises(KeyError), handle.disabled():
        raise KeyError
    assert torch.equal(model(text(111)).logits, routed)
    with handle.disabled():
        handle.detach()
        second = attach_tiny(model)
    second.set_routes("sparse")  # leaving did not disturb the new one
    assert torch.equal(model(text(111)).logits, routed)
    second.detach()
    assert torch.equal(model(text(111)).logits, base)


@torch.no_grad()
def test_reference_and_cpu_backend_agree():
    logits = []
    for backend in ("cpu", "reference"):
        model = make_model()
        handle = attach_tiny(model, backend=backend)
        handle.set_routes(random_routes(model))
        logits.append(model(text(150), use_cache=False).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=2e-4)


# Prompts and caches that cannot be routed -------------------------------------------------------------------------


def test_empty_prompts(model, handle):
    empty = torch.zeros(1, 0, dtype=torch.long)
    for prompt in (empty, empty[:0], torch.zeros(0, 5, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"empty prompt of shape \(.*at least one token"):
            model.generate(prompt, **GREEDY)
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(**GREEDY)


def test_all_padding_rows(model, handle):
    mask = torch.ones(3, 60, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"Rows \[1\].*all padding"):
        model.generate(text(60, rows=3), attention_mask=mask, **GREEDY)
    with torch.no_grad():  # a forward computes nothing for the row and leaves the others alone
        logits = model(text(60, rows=3), attention_mask=mask).logits
        assert bool(torch.isfinite(logits).all())
        torch.testing.assert_close(logits[0], model(text(60, rows=3)[:1]).logits[0], rtol=0, atol=2e-4)


def test_one_token_prompts(model, handle):
    out = model.generate(text(1), do_sample=False, max_new_tokens=80)
    assert torch.equal(out, make_model().generate(text(1), do_sample=False, max_new_tokens=80))
    assert handle.report()["routed"] == [False] and handle.report()["prompt_tokens"] == [1]


class PlainQuantizedLayer(QuantizedLayer):
    """A quantised layer without the optional library that would quantise."""

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, tensor):
        return tensor


CACHES = {
    "static": lambda config: StaticCache(config=config, max_cache_len=200),
    "offloaded": lambda config: DynamicCache(config=config, offloading=True),
    "quantized": lambda config: Cache(layers=[PlainQuantizedLayer() for _ in range(LAYERS)]),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_that_cannot_hold_routed_heads_are_refused(model, handle, name):
    if name == "offloaded" and not torch.cuda.is_available():
        cache = DynamicCache(config=model.config)
        cache.offloading = True  # offloading itself needs an accelerator
    else:
        cache = CACHES[name](model.config)
    with pytest.raises(UnsupportedCache, match=r"annot hold routed heads.*(pass a DynamicCache|leave out)"):
        model(text(60), past_key_values=cache)
    with pytest.raises(UnsupportedCache, match="cannot hold routed heads"):
        model.generate(text(60), past_key_values=cache, **GREEDY)


def test_a_static_cache_asked_for_by_name_is_refused(model, handle):
    with pytest.raises(UnsupportedCache, match=r"StaticLayer of StaticCache cannot hold.*handle\.disabled\(\)"):
        model.generate(text(60), cache_implementation="static", **GREEDY)
    with handle.disabled():
        model.generate(text(60), cache_implementation="static", **GREEDY)


@torch.no_grad()
def test_a_cache_that_the_base_model_filled_is_refused(model, handle):
    cache = DynamicCache(config=model.config)
    with handle.disabled():
        model(text(60), past_key_values=cache)
    with pytest.raises(UnsupportedCache, match="already holds 60 tokens of the base model"):
        model(text(5), past_key_values=cache)


@torch.no_grad()
def test_a_cache_of_routed_heads_is_refused_by_the_base_model(model, handle):
    cache = DynamicCache(config=model.config)
    model(text(60), past_key_values=cache)
    with handle.disabled(), pytest.raises(UnsupportedCache, match="filled with routed heads"):
        model(text(5), past_key_values=cache)
    handle.detach()
    with pytest.raises(UnsupportedCache, match="filled with routed heads"):
        model(text(5), past_key_values=cache)


@torch.no_grad()
def test_masks_that_are_no_padding_masks(model, handle):
    four = torch.ones(1, 1, 60, 60, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"attention_mask \(1, 1, 60, 60\) is no padding mask"):
        model(text(60), attention_mask=four)
    cache = DynamicCache(config=model.config)
    model(text(60), past_key_values=cache)
    with pytest.raises(ValueError, match="attention_mask has 5 columns.*65"):
        model(text(5), attention_mask=torch.ones(1, 5, dtype=torch.long), past_key_values=cache)


def test_nan_in_the_models_weights_does_not_look_like_an_answer(model, handle):
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = torch.nan
        logits = model(text(111), use_cache=False).logits
    with handle.disabled(), torch.no_grad():
        base = model(text(111), use_cache=False).logits
    assert bool(logits.isnan().any()) and bool(base.isnan().any())
