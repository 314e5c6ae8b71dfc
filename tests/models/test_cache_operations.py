"""What people do with a cache of routed heads: copy, reorder, repeat, crop, reset, save."""

import copy
import pickle

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from elastic_attention.models.handle import find_handle
from tiny_models import (
    generate,
    left_padded,
    random_routes,
    text,
)


def test_deep_copied_caches_go_their_own_ways(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    saved = copy.deepcopy(cache)
    turn_a, turn_b = (torch.cat([said, text(30, seed=s)], 1) for s in (1, 2))
    first = generate(model, turn_a, past_key_values=cache)
    other = generate(model, turn_b, past_key_values=copy.deepcopy(saved))
    assert torch.equal(generate(model, turn_a, past_key_values=copy.deepcopy(saved)), first)
    assert torch.equal(generate(model, turn_b, past_key_values=saved), other)
    assert not torch.equal(first[:, -20:], other[:, -20:])


def test_cache_batch_operations_carry_routes(model, handle):
    """What contrastive search and reward-guided decoding do: repeat, select, reorder, then go on."""
    cache = DynamicCache(config=model.config)
    ids = text(111, rows=2)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        routes = handle.report()["routes"]
        assert not torch.equal(routes[0], routes[1])
        one_by_one = [copy.deepcopy(cache) for _ in range(2)]
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        cache.batch_select_indices(torch.tensor([0, 1, 2]))
        found = model(text(1).expand(3, 1), past_key_values=cache).logits
        assert torch.equal(handle.report()["routes"], routes[[1, 0, 0]])
        for b, single in enumerate(one_by_one):
            single.batch_select_indices(torch.tensor([b]))
            wanted = model(text(1), past_key_values=single).logits
            for row in {0: (1, 2), 1: (0,)}[b]:
                torch.testing.assert_close(found[row], wanted[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_batch_operations_on_undecided_and_padded_sequences(model, handle):
    """Pools, decisions and holes travel with their sequences, and a later prompt decides as if alone."""
    first = [text(40, seed=1), text(30, seed=2), text(100, seed=3)]
    then = [text(30, seed=4), text(20, seed=5), text(9, seed=6)]
    alone = []
    for one, two in zip(first, then, strict=True):
        cache = DynamicCache(config=model.config)
        model(one, past_key_values=cache)
        alone.append((model(two, past_key_values=cache).logits, handle.report()["routes"][0]))
    ids, mask, positions = left_padded(first)
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    assert handle.report()["routed"] == [False, False, True]
    order = [2, 0, 0, 1]
    cache.batch_select_indices(torch.tensor(order))
    ids, more, _ = left_padded([then[i] for i in order])
    both = torch.cat([mask[order], more], 1)
    positions = (both.cumsum(1) - 1).clamp(min=0)[:, 100:]
    before = copy.deepcopy(cache)
    for _ in range(2):
        logits = model(ids, attention_mask=both, position_ids=positions, past_key_values=cache).logits
        report = handle.report()
        assert report["routed"] == [True, True, True, True]
        for row, i in enumerate(order):
            assert torch.equal(report["routes"][row], alone[i][1])
            torch.testing.assert_close(logits[row, more[row].bool()], alone[i][0][0], rtol=0, atol=2e-4)
        cache = before


@torch.no_grad()
def test_cropping_columns_that_hold_padding(model, handle):
    """A crop counts columns; a sequence loses only the real tokens among them."""
    handle.set_routes(random_routes(model))
    ids, mask, positions = left_padded([text(100, seed=1), text(70, seed=2)])
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    mask = mask[[1, 0]]
    turn, more, _ = left_padded([text(2, seed=3), text(6, seed=4)])
    both = torch.cat([mask, more], 1)
    options = dict(attention_mask=both, position_ids=(both.cumsum(1) - 1)[:, 100:])
    first = model(turn, past_key_values=cache, **options).logits
    lengths = [layer.store.lengths for layer in cache.layers]
    assert lengths == [[72, 106]] * 3
    cache.crop(-6)
    assert [layer.store.lengths for layer in cache.layers] == [[70, 100]] * 3
    again = model(turn, past_key_values=cache, **options).logits
    torch.testing.assert_close(again[more.bool()], first[more.bool()], rtol=0, atol=2e-4)


def test_reset_starts_a_new_sequence(model, handle):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        fresh = model(text(111), past_key_values=cache).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(model(text(111), past_key_values=cache).logits, fresh)


def test_a_cache_may_be_saved_and_read_again(model, handle):
    cache = DynamicCache(config=model.config)
    model(text(111), past_key_values=cache)
    read = pickle.loads(pickle.dumps(cache))
    token = text(1, seed=5)
    assert torch.equal(model(token, past_key_values=read).logits, model(token, past_key_values=cache).logits)


def test_an_attached_model_may_be_pickled(model, handle, monkeypatch):
    wanted, data = generate(model, text(111)), pickle.dumps(model)
    for known in (AttentionInterface, AttentionMaskInterface):  # the other process has not attached anything
        monkeypatch.delitem(known._global_mapping, "elastic")
    read = pickle.loads(data)
    assert torch.equal(generate(read, text(111)), wanted)
    find_handle(read).detach()
    assert find_handle(model) is handle and torch.equal(generate(model, text(111)), wanted)
