"""Tokens that are taken back: assisted decoding, prompt lookup, and crops by hand."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tiny_models import (
    NEEDED,
    attach_tiny,
    generate,
    make_model,
    random_routes,
    text,
)


@torch.no_grad()
def test_tokens_that_were_taken_back_never_reach_the_router(model):
    """Only a handle that routes again keeps pooling once a route is decided."""
    handle = attach_tiny(model, reroute_on_append=True)
    pooled = []

    def note(index, keys):
        pooled.append(keys)
        return torch.zeros(keys.shape[:2], dtype=torch.bool)

    with handle.routed_by(note, is_sampling=False):
        for seed in (1, 2):
            cache = DynamicCache(config=model.config)
            model(torch.cat([text(140), text(10, seed=seed)], 1), past_key_values=cache)
            cache.crop(-10)
            model(text(3, seed=3), past_key_values=cache)
    after_the_long_turn, after_the_crop = pooled[0::6], pooled[3::6]  # of layer 0, in both conversations
    assert torch.equal(*after_the_crop) and not torch.equal(*after_the_long_turn)


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("length", [30, 47, 111, 150])
def test_prompt_lookup_says_what_greedy_says(model, decode, length):
    handle = attach_tiny(model, decode=decode)
    prompt = text(10, seed=3).repeat(1, 15)[:, :length]  # repetitive, so that candidates are found and rejected
    wanted = generate(model, prompt, max_new_tokens=60)
    routes = handle.report()["routes"]
    assert torch.equal(generate(model, prompt, max_new_tokens=60, prompt_lookup_num_tokens=5), wanted)
    assert torch.equal(handle.report()["routes"], routes)


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("is_assistant_routed", [False, True])
def test_assisted_decoding_says_what_greedy_says(model, decode, is_assistant_routed):
    attach_tiny(model, decode=decode)
    assistant = make_model(num_hidden_layers=3)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # right often, not always
    if is_assistant_routed:
        attach_tiny(assistant).set_routes("sparse")
    wanted = generate(model, text(111), max_new_tokens=60)
    assert torch.equal(generate(model, text(111), max_new_tokens=60, assistant_model=assistant), wanted)


def test_a_cache_kept_from_assisted_decoding_evicts_again(model, handle):
    handle.set_routes("sparse")
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, prompt_lookup_num_tokens=4)
    said = torch.cat([said, text(30, seed=2)], 1)
    again = generate(model, said, past_key_values=copy.deepcopy(cache))
    assert torch.equal(again, generate(model, said))
    generate(model, said, past_key_values=cache, max_new_tokens=100)
    for layer in cache.layers:
        assert max(layer.store.stored_lengths(layer.store.groups[1])) <= NEEDED


def test_undecided_sequences_pool_only_the_candidates_that_were_kept(model, handle):
    """The later route must not depend on tokens that were guessed and taken back."""
    prompt = text(10, seed=3).repeat(1, 3)
    routes = []
    for options in ({}, {"prompt_lookup_num_tokens": 5}):
        cache = DynamicCache(config=model.config)
        said = generate(model, prompt, past_key_values=cache, max_new_tokens=15, **options)
        generate(model, torch.cat([said, text(20, seed=4)], 1), past_key_values=cache, max_new_tokens=2)
        assert handle.report()["routed"] == [True]
        routes.append(handle.report()["routes"])
        pools = [layer.pool for layer in cache.layers]
        assert pools == [None] * 3
    assert torch.equal(*routes)


def test_cropping_by_hand(model, handle, oracle):
    from elastic_attention import CacheDepthError

    handle.set_routes(routes := random_routes(model))
    ids = text(150)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids[:, :147], past_key_values=cache)
        cache.crop(-2)  # 145 is in the same block, nothing of its window is gone
        found = model(ids[:, 145:], past_key_values=cache).logits
        torch.testing.assert_close(found, oracle.logits(ids, routes)[:, 145:], rtol=0, atol=2e-4)
        before = copy.deepcopy(cache)
        with pytest.raises(CacheDepthError, match="Cropping 60 of 150 tokens.*decode='full'"):
            cache.crop(-60)
        again = model(text(1), past_key_values=cache).logits  # the failed crop changed nothing
        assert torch.equal(again, model(text(1), past_key_values=before).logits)
