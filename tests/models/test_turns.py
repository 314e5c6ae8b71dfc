"""Several turns over a kept cache: routes stay, holes and padding follow the rule, short sequences grow up."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tiny_models import (
    NEEDED,
    attach_tiny,
    generate,
    left_padded,
    random_routes,
    text,
)


def converse(model, turns, *, num_new=10, cache=None, **options):
    """Each turn appends (1, n) tokens to what was said and generates `num_new`; returns all ids and the cache."""
    said, cache = torch.zeros(1, 0, dtype=torch.long), cache or DynamicCache(config=model.config)
    for turn in turns:
        said = torch.cat([said, turn], 1)
        said = generate(model, said, past_key_values=cache, max_new_tokens=num_new, **options)
    return said, cache


def test_turns_over_a_kept_cache_equal_the_oracle(model, handle, oracle):
    turns = [text(70, seed=1), text(1, seed=2), text(90, seed=3)]
    said, _ = converse(model, turns)
    report = handle.report()
    routes, wanted = report["routes"], torch.zeros(1, 0, dtype=torch.long)
    assert routes.any() and report["prompt_tokens"] == [91]  # and the last token of the turn before, not cached yet
    for turn in turns:
        wanted = oracle.greedy(torch.cat([wanted, turn], 1), routes, 10)
    assert torch.equal(said, wanted)


def test_a_batch_with_holes_equals_each_conversation_alone(model, handle):
    """Turns of different length leave padding in the middle of the mask."""
    conversations = [
        [text(70, seed=1), text(40, seed=2), text(30, seed=3)],
        [text(20, seed=4), text(60, seed=5), text(9, seed=6)],
    ]
    alone, routes = [], []
    for turns in conversations:
        alone.append(converse(model, turns)[0])
        routes.append(handle.report()["routes"][0])
    cache, said, masks = DynamicCache(config=model.config), None, None
    for parts in zip(*conversations, strict=True):
        ids, mask, _ = left_padded(list(parts))
        said = ids if said is None else torch.cat([said, ids], 1)
        masks = mask if masks is None else torch.cat([masks, mask], 1)
        said = generate(model, said, attention_mask=masks, past_key_values=cache, max_new_tokens=10)
        masks = torch.cat([masks, torch.ones(2, 10, dtype=torch.long)], 1)
    assert (masks[:, 80:].sum(1) < masks.shape[1] - 80).all()  # there were holes
    for b in range(2):
        assert torch.equal(said[b][masks[b].bool()], alone[b][0])
        assert torch.equal(handle.report()["routes"][b], routes[b])


def test_right_padding_follows_the_same_rule(model, handle, oracle):
    handle.set_routes(routes := random_routes(model))
    ids, mask = text(150, rows=2).clone(), torch.ones(2, 150, dtype=torch.long)
    mask[1, 90:] = 0
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        step = model(
            text(1, rows=2, seed=9),
            attention_mask=longer,
            past_key_values=cache,
            position_ids=torch.tensor([[150], [90]]),
        ).logits
    for b, n in enumerate((150, 90)):
        wanted = oracle.logits(torch.cat([ids[b : b + 1, :n], text(1, rows=2, seed=9)[b : b + 1]], 1), routes)
        torch.testing.assert_close(logits[b, :n], wanted[0, :n], rtol=0, atol=2e-4)
        torch.testing.assert_close(step[b, 0], wanted[0, n], rtol=0, atol=2e-4)


def test_short_sequences_stay_undecided_until_a_prompt_makes_them_long(model, handle, oracle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(30), past_key_values=cache, max_new_tokens=60)
    report = handle.report()
    # 89 tokens are cached by now: decoding alone does not decide.
    assert report["routed"] == [False] and report["msr"] == [0.0] and report["esr_decode"] == [0.0]
    assert report["kv_bytes"] == report["kv_bytes_dense"]
    assert torch.equal(said, oracle.greedy(text(30), torch.zeros(3, 2, dtype=torch.bool), 60))
    said = generate(model, torch.cat([said, text(2, seed=2)], 1), past_key_values=cache)
    report = handle.report()
    assert report["routed"] == [True] and report["msr"][0] > 0
    assert report["kv_bytes"][0] < report["kv_bytes_dense"][0]


@pytest.mark.parametrize("length, is_routed", [(NEEDED - 1, False), (NEEDED, False), (NEEDED + 1, True)])
def test_the_length_that_is_routed(model, handle, length, is_routed):
    generate(model, text(length), max_new_tokens=2)
    assert handle.report()["routed"] == [is_routed]
    with torch.no_grad():
        model(text(length), use_cache=False)
    assert handle.report()["routed"] == [is_routed]


def test_a_live_cache_keeps_its_routes(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    routes = handle.report()["routes"]
    handle.set_routes("sparse")
    handle.budget = 1e4
    generate(model, torch.cat([said, text(60, seed=8)], 1), past_key_values=cache, max_new_tokens=4)
    assert torch.equal(handle.report()["routes"], routes)


def test_reroute_on_append_only_turns_full_heads_sparse(model):
    handle = attach_tiny(model, reroute_on_append=True)
    cache = DynamicCache(config=model.config)
    handle.budget = -15.0
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    before = handle.report()["routes"]
    handle.budget = 10.0
    said = generate(model, torch.cat([said, text(60, seed=8)], 1), past_key_values=cache, max_new_tokens=4)
    after = handle.report()["routes"]
    assert before.any() and (after & ~before).any() and not (before & ~after).any()
    handle.budget = -1e4
    generate(model, torch.cat([said, text(60, seed=9)], 1), past_key_values=cache, max_new_tokens=4)
    assert torch.equal(handle.report()["routes"], after)
    # Heads that turned sparse late hold what sparse heads hold.
    held = handle.report()["kv_bytes"][0]
    assert held < handle.report()["kv_bytes_dense"][0]
    for layer in cache.layers:
        stored = layer.store.stored_lengths(layer.store.groups[1])
        assert set(stored) <= {layer.store.pattern.count_held(layer.store.lengths[0])}


def test_late_sparse_heads_read_what_is_left(model, oracle):
    """After a reroute, tokens equal those of an oracle whose last layer changed its routes at that turn."""
    handle = attach_tiny(model, reroute_on_append=True)
    first = torch.zeros(3, 2, dtype=torch.bool)
    first[2, 0] = True
    then = first.clone()
    then[2, 1] = True
    cache = DynamicCache(config=model.config)
    turns = [text(111, seed=1), text(50, seed=2)]
    with torch.no_grad():
        with handle.routed_by(lambda i, x: first[i : i + 1], is_sampling=False):
            model(turns[0], past_key_values=cache)
        with handle.routed_by(lambda i, x: then[i : i + 1], is_sampling=False):
            logits = model(turns[1], past_key_values=cache).logits
            step = model(text(1), past_key_values=cache).logits
    # Only the last layer is ever sparse, so its inputs do not depend on the routes.
    wanted = oracle.logits(torch.cat([*turns, text(1)], 1), then)
    torch.testing.assert_close(logits, wanted[:, 111:161], rtol=0, atol=2e-4)
    torch.testing.assert_close(step, wanted[:, 161:], rtol=0, atol=2e-4)


def test_a_prompt_shorter_than_its_cache(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(70), past_key_values=cache)
    with pytest.raises(
        ValueError, match="generate got 20 columns, but the cache already holds 109.*whole conversation"
    ):
        generate(model, text(20, seed=4), past_key_values=cache)
    turn = torch.cat([said[:, -1:], text(20, seed=4)], 1)
    whole = torch.cat([said, text(20, seed=4)], 1)
    new_only = copy.deepcopy(cache)
    out = generate(model, turn, past_key_values=new_only, attention_mask=torch.ones_like(whole))
    assert handle.report()["prompt_tokens"] == [21]
    assert torch.equal(out[:, -40:], generate(model, whole, past_key_values=cache)[:, -40:])
