"""Prompts that arrive in chunks: what each policy pools, when it routes, and what the answer is."""

import pytest
import torch

from tiny_models import NEEDED, attach_tiny, generate, left_padded, text


def dense_pooled(model, handle, ids, first=None):
    """Pooled keys by layer of a dense pass over `ids`, brute force: the mean over the first and last n tokens."""
    n, pooled = handle.config.router.pooled_tokens, {}

    def note(index, keys):
        pooled[index] = keys
        return torch.zeros(keys.shape[:2], dtype=torch.bool)

    chosen = ids[:, :first]
    with torch.no_grad(), handle.routed_by(note, is_sampling=False):
        model.base_model(input_ids=chosen, use_cache=False)
    assert n * 2 < chosen.shape[1]
    return pooled


@pytest.mark.parametrize("chunk", [16, 32, 50, 149, 150])
def test_deferred_is_dense_while_prefilling_and_routes_at_the_end(model, handle, chunk):
    ids = text(150)
    base_first = None
    with handle.disabled():
        base_first = generate(model, ids, max_new_tokens=1)
    pooled = dense_pooled(model, handle, ids)
    wanted = torch.stack([handle.decide(i, pooled[i])[0] for i in range(3)])
    out = generate(model, ids, prefill_chunk_size=chunk)
    report = handle.report()
    if chunk < 150:
        assert torch.equal(report["routes"][0], wanted) and report["routed"] == [True]
        assert torch.equal(out[:, :151], base_first)
        assert report["esr_prefill"] == [0.0] and report["esr_decode"][0] > 0
        assert torch.equal(out, generate(model, ids, prefill_chunk_size=37))
    else:
        assert report["esr_prefill"][0] > 0
    assert report["kv_bytes"][0] < report["kv_bytes_dense"][0]


@pytest.mark.parametrize("first", [60, 100, 149])
def test_first_chunk_pools_the_same_tokens_whatever_the_chunk(model, first):
    handle = attach_tiny(model, prefill_policy="first_chunk", first_chunk_tokens=first)
    ids = text(150)
    pooled = dense_pooled(model, handle, ids, first)
    wanted = torch.stack([handle.decide(i, pooled[i])[0] for i in range(3)])
    for chunk in (None, 16, 32, 50, 100):
        generate(model, ids, prefill_chunk_size=chunk, max_new_tokens=2)
        assert torch.equal(handle.report()["routes"][0], wanted), chunk


def test_first_chunk_in_a_padded_batch_equals_each_row_alone(model):
    handle = attach_tiny(model, prefill_policy="first_chunk", first_chunk_tokens=20)
    lengths = [150, 70, 55, 40]
    prompts = [text(150, seed=s)[:, :n] for s, n in enumerate(lengths)]
    ids, mask, _ = left_padded(prompts)
    for chunk in (None, 16):
        generate(model, ids, attention_mask=mask, prefill_chunk_size=chunk, max_new_tokens=2)
        together = handle.report()
        for b, prompt in enumerate(prompts):
            generate(model, prompt, prefill_chunk_size=chunk and min(chunk, prompt.shape[1] - 1), max_new_tokens=2)
            assert torch.equal(handle.report()["routes"][0], together["routes"][b])
            assert handle.report()["routed"] == [together["routed"][b]] == [lengths[b] > NEEDED]


def test_probe_makes_chunks_exact(model, oracle):
    handle = attach_tiny(model, prefill_policy="probe")
    ids, mask, _ = left_padded([text(150), text(100, seed=4), text(30, seed=5)])
    whole = generate(model, ids, attention_mask=mask)
    routes = handle.report()["routes"]
    assert routes[:2].any() and not routes[2].any()
    assert handle.report()["esr_prefill"][0] > 0
    for chunk in (16, 50):
        assert torch.equal(generate(model, ids, attention_mask=mask, prefill_chunk_size=chunk), whole)
        assert torch.equal(handle.report()["routes"], routes)
    assert torch.equal(whole[:1], oracle.greedy(text(150), routes[0], 40))
    # The probe reads the first and last n tokens at their own positions.
    n = handle.config.router.pooled_tokens
    ends = torch.cat([text(150)[:, :n], text(150)[:, -n:]], 1)
    positions = torch.cat([torch.arange(n), torch.arange(150 - n, 150)])[None]
    seen = {}
    with torch.no_grad(), handle.routed_by(lambda i, x: seen.setdefault(i, x)[..., 0] > torch.inf, is_sampling=False):
        model.base_model(ends, attention_mask=torch.ones_like(ends), position_ids=positions, use_cache=False)
    wanted = torch.stack([handle.decide(i, seen[i])[0] for i in range(3)])
    assert torch.equal(routes[0], wanted)
