"""Prefilled caches, and a captured decoder that goes on with another one than it was captured over."""

import torch
from transformers import DynamicCache

from tiny_models import left_padded, random_routes, text

# Lengths and routes of batches that have little in common; (150, 150, 150) of full heads needs the most memory.
CASES = {
    "all full": ((150, 150, 150), "full"),
    "all sparse": ((60, 150, 100), "sparse"),
    "mixed": ((149, 33, 120), None),
    "short and full": ((20, 48, 7), "full"),
}


def prefill(model, lengths):
    """Ids, mask and the filled cache of a left-padded batch of prompts."""
    ids, mask, positions = left_padded([text(n, seed=20 + n) for n in lengths])
    ids, mask, positions = (x.to(model.device) for x in (ids, mask, positions))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return ids, mask, cache


def hand_over(decoder, cache, first_tokens):
    """Put what `cache` holds into the memory that the graph of `decoder` reads."""
    for layer, other in zip(decoder.cache.layers, cache.layers, strict=True):
        mine, theirs = layer.store, other.store
        theirs.settle()
        for row, count in enumerate(theirs.pool.counts):
            target, origin = (store.pool.table[row, :count].long() for store in (mine, theirs))
            mine.pool.keys[target] = theirs.pool.keys[origin]
            mine.pool.values[target] = theirs.pool.values[origin]
        mine.modes.copy_(theirs.modes)
        mine.device_lengths.copy_(theirs.device_lengths)
    decoder.tokens.copy_(first_tokens[:, None])
    decoder._positions.copy_(mine.device_lengths[:, None])


def run_cases(model, handle, make_decoder, *, num_new):
    """For every case the tokens of `generate` and those of one decoder that serves them all in turn."""
    wanted, caches = {}, {}
    for name, (lengths, routes) in CASES.items():
        handle.set_routes(random_routes(model, batch=len(lengths)) if routes is None else routes)
        ids, mask, caches[name] = prefill(model, lengths)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=num_new, do_sample=False)
        wanted[name] = out[:, ids.shape[1] :]
    first, *others = CASES
    decoder = make_decoder(handle, caches[first], wanted[first][:, 0], max_new_tokens=len(CASES) * num_new)
    got = {}
    for name in (first, *others):
        if name != first:
            hand_over(decoder, caches[name], wanted[name][:, 0])
        steps = [decoder.step()[:, 0].clone() for _ in range(num_new - 1)]
        got[name] = torch.stack([wanted[name][:, 0], *steps], 1)
    return wanted, got
