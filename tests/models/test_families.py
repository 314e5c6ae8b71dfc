"""Every model family: all heads full is the base model bit for bit; given routes do not depend on how tokens arrive."""

import pytest
import torch
import transformers
from transformers import DynamicCache

from elastic_attention import UnsupportedModel, attach, find_handle
from elastic_attention.models.families import find_attention_modules, keys_before_rope, queries_before_rope
from tiny_models import FAMILIES, attach_tiny, elastic_config, left_padded, make_model, random_routes, text

MIXED = {"gemma3_text", "cohere2", "olmo3", "exaone4", "ministral"}  # full and sliding layers
NORM_AFTER_ROPE = {"hunyuan"}
LENGTH = 150


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def base(family):
    """The model and what it says before anything is attached: one shot, and prefill with three decoded tokens."""
    model = make_model(family)
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        logits = {"one shot": model(text(LENGTH), use_cache=False).logits, "cached": in_pieces(model, [147, 1, 1, 1])}
        logits["batch"] = model(text(LENGTH, rows=3), use_cache=False).logits
    return model, logits


@pytest.fixture
def attached(base):
    handle = attach_tiny(base[0])
    yield base[0], handle
    handle.detach()


def in_pieces(model, sizes, ids=None, **options):
    """Logits of all tokens when they come in pieces over one cache."""
    ids, cache, start, outs = text(sum(sizes)) if ids is None else ids, DynamicCache(config=model.config), 0, []
    with torch.no_grad():
        for size in sizes:
            piece = ids[:, start : start + size]
            masks = {name: x[:, : start + size] for name, x in options.items() if name == "attention_mask"}
            positions = {name: x[:, start : start + size] for name, x in options.items() if name == "position_ids"}
            outs.append(model(piece, past_key_values=cache, **masks, **positions).logits)
            start += size
    return torch.cat(outs, 1)


def close(found, wanted):
    """float32 noise of another summation order, measured in units of the largest logit."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * wanted.abs().max().item())


def test_routed_layers(attached, family):
    handle = attached[1]
    assert handle.routed_layers == ((0, 2) if family in MIXED else (0, 1, 2))


def test_all_full_is_the_base_model_bit_for_bit(attached, base):
    model, handle = attached
    handle.set_routes("full")
    with torch.no_grad():
        assert torch.equal(model(text(LENGTH), use_cache=False).logits, base[1]["one shot"])
        assert torch.equal(model(text(LENGTH, rows=3), use_cache=False).logits, base[1]["batch"])
        ones = torch.ones(1, LENGTH, dtype=torch.long)
        assert torch.equal(model(text(LENGTH), attention_mask=ones).logits, base[1]["one shot"])
    assert torch.equal(in_pieces(model, [147, 1, 1, 1]), base[1]["cached"])


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "olmo2", "phi3"])
def test_all_full_is_bit_equal_in_bfloat16_too(name):
    model = make_model(name).bfloat16()
    with torch.no_grad():
        before = model(text(LENGTH), use_cache=False).logits, in_pieces(model, [147, 1, 1, 1])
        attach_tiny(model).set_routes("full")
        assert torch.equal(model(text(LENGTH), use_cache=False).logits, before[0])
    assert torch.equal(in_pieces(model, [147, 1, 1, 1]), before[1])


def test_detached_and_disabled_are_the_base_model_bit_for_bit(base):
    model, before = base
    names = sorted(model.state_dict()), [name for name, _ in model.named_modules()]
    handle = attach_tiny(model)
    handle.set_routes("sparse")
    with torch.no_grad():
        assert not torch.equal(model(text(LENGTH), use_cache=False).logits, before["one shot"])
        with handle.disabled():
            assert torch.equal(model(text(LENGTH), use_cache=False).logits, before["one shot"])
    assert (sorted(model.state_dict()), [name for name, _ in model.named_modules()]) == names
    handle.detach()
    with torch.no_grad():
        assert torch.equal(model(text(LENGTH), use_cache=False).logits, before["one shot"])
    assert torch.equal(in_pieces(model, [147, 1, 1, 1]), before["cached"])
    assert find_handle(model) is None and model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "generate" not in vars(model)


def test_given_routes_one_shot_equals_decoded_chunked_and_padded(attached):
    model, handle = attached
    routes = random_routes(model)
    assert routes.any()
    handle.set_routes(routes)
    with torch.no_grad():
        one_shot = model(text(LENGTH), use_cache=False).logits
        close(model(text(LENGTH)).logits, one_shot)
    close(in_pieces(model, [80] + [1] * 70), one_shot)
    close(in_pieces(model, [37, 27, 1, 1, 34, 48, 2]), one_shot)
    ids, mask, positions = left_padded([text(LENGTH), text(61)])
    options = dict(attention_mask=mask, position_ids=positions)
    for pieces in ([LENGTH], [100, 30, 1, 1, 1, 17]):
        padded = in_pieces(model, pieces, ids, **options)
        close(padded[0], one_shot[0])
        close(padded[1, LENGTH - 61 :], one_shot[0, :61])


def test_the_pattern_is_the_block_rule(attached):
    """A token behind the window of all-sparse heads is not read in the first layer, one in the window is."""
    model, handle = attached
    handle.set_routes("sparse")
    changed = text(LENGTH).clone()
    changed[0, 20] = 1 + changed[0, 20] % 96  # sink 16, window 32, block 16: position 20 leaves at 48
    seen = {}

    def note(module, args, kwargs, output):
        seen.setdefault(module.layer_idx, []).append(output[0].detach())

    hook = find_attention_modules(model)[0].register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(text(LENGTH), use_cache=False)
        model(changed, use_cache=False)
    hook.remove()
    before, after = seen[0]
    assert (before != after).any(-1)[0].nonzero()[:, 0].tolist() == list(range(20, 48))


@torch.no_grad()
@pytest.mark.parametrize("project", [keys_before_rope, queries_before_rope])
def test_states_before_rope_are_what_attention_receives_at_position_zero(base, family, monkeypatch, project):
    """Position 0 is not rotated, so there the two must agree, norms and fused projections included."""
    model, received, pooled = base[0], {}, {}
    original = transformers.AttentionInterface._global_mapping["sdpa"]

    def note(module, query, key, *args, **kwargs):
        received[module.layer_idx] = key if project is keys_before_rope else query
        return original(module, query, key, *args, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "sdpa", note)

    def pool(module, args, kwargs):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        pooled[module.layer_idx] = project(module, hidden)

    modules = find_attention_modules(model)
    hooks = [m.register_forward_pre_hook(pool, with_kwargs=True) for m in modules.values()]
    model(text(1, rows=4), use_cache=False)
    for hook in hooks:
        hook.remove()
    assert sorted(pooled) == sorted(modules)
    for layer, states in pooled.items():
        if family in NORM_AFTER_ROPE:
            module = modules[layer]
            states = (module.key_layernorm if project is keys_before_rope else module.query_layernorm)(states)
        assert torch.equal(states.transpose(1, 2), received[layer])


@torch.no_grad()
def test_a_layer_router_decides_for_all_heads_of_a_layer(base):
    model = base[0]
    handle = attach_tiny(model, config=elastic_config(model, granularity="layer"))
    try:
        model(text(LENGTH, rows=8))
        routes = handle.report()["routes"][:, list(handle.routed_layers)]
        assert routes.any() and not routes.all()
        assert torch.equal(routes, routes[:, :, :1].expand_as(routes))
    finally:
        handle.detach()


@torch.no_grad()
def test_the_router_decides_and_heads_differ(attached):
    model, handle = attached
    model(text(LENGTH, rows=4))
    report = handle.report()
    assert report["routed"] == [True] * 4
    routes = report["routes"][:, list(handle.routed_layers)]
    assert routes.any() and not routes.all()
    assert not report["routes"][:, [i for i in range(3) if i not in handle.routed_layers]].any()


# Models that must be refused --------------------------------------------------------------------------------------


def tiny(prefix, **changes):
    sizes = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**(sizes | changes)))


def narrow_values(model):
    for layer in model.model.layers:
        layer.self_attn.v_proj = torch.nn.Linear(48, 16)
    return model


REFUSED = {
    "sinks": (lambda: tiny("GptOss", num_local_experts=2, num_experts_per_tok=1), "attention sinks.*`sinks`"),
    "soft-capping": (lambda: tiny("Gemma2"), "soft-capping.*`attn_logit_softcapping`"),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=6)),
        "GPT2LMHeadModel has no attention module with `layer_idx` and `num_key_value_groups`",
    ),
    "all sliding mistral": (lambda: tiny("Mistral", sliding_window=24), "Every attention layer.*sliding window"),
    "all sliding phi3": (lambda: tiny("Phi3", sliding_window=24), "Every attention layer.*sliding window"),
    "all sliding mixtral": (
        lambda: tiny("Mixtral", sliding_window=24, num_local_experts=2),
        "Every attention layer.*sliding window",
    ),
    "narrow values": (lambda: narrow_values(make_model()), "values of another width than its keys, 16 beside 32"),
    "no transformers model": (lambda: torch.nn.Linear(2, 2), "Linear is no transformers model"),
    "nothing": (lambda: None, "NoneType is no transformers model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_models_name_what_is_missing(case):
    build, message = REFUSED[case]
    model = build()
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    with pytest.raises(UnsupportedModel, match=message):
        attach(model)
    if before is not None:  # nothing was left behind
        assert model.config._attn_implementation == before and find_handle(model) is None
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_are_told_apart_by_their_types():
    """Families that note a window in their settings alone, and by layer."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = make_model("qwen2_moe", use_sliding_window=True, sliding_window=24, layer_types=kinds)
    assert list(find_attention_modules(model)) == [1]
    assert list(find_attention_modules(make_model("qwen2_moe"))) == [0, 1, 2]


def test_attention_dropout_in_training_is_refused():
    model = make_model(attention_dropout=0.1).train()
    attach_tiny(model).set_routes("sparse")
    with pytest.raises(UnsupportedModel, match="attention dropout"):
        model(text(100), use_cache=False)
    model.eval()(text(100), use_cache=False)
