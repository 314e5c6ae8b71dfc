"""`Handle.report` against pairs counted from masks and bytes counted by hand."""

import dataclasses

import pytest
import torch
from transformers import DynamicCache

from elastic_attention import TriangleConfig
from oracles import visible_mask
from tiny_models import LAYERS, NEEDED, attach_tiny, elastic_config, left_padded, make_model, random_routes, text

NEW = 20


def count_pairs(config, is_sparse, start, stop):
    mask = visible_mask(config, stop) if is_sparse else torch.ones(stop, stop).tril()
    return int(mask[start:stop].sum())


def held(config, n):
    return count_pairs(config, True, n - 1, n) if n else 0


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_generate_of_a_padded_batch(family, decode, use_cache):
    model = make_model(family)
    handle = attach_tiny(model, decode=decode)
    lengths = [150, 70, 47]
    ids, mask, _ = left_padded([text(150, seed=s)[:, :n] for s, n in enumerate(lengths)])
    routes = random_routes(model, batch=3)
    handle.set_routes(routes)
    model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=use_cache)
    report, pattern, layers = handle.report(), handle.config.sparse_pattern, list(handle.routed_layers)
    assert torch.equal(report["routes"], routes)
    assert report["prompt_tokens"] == lengths and report["routed"] == [True] * 3
    for b, n in enumerate(lengths):
        total = n + NEW - 1  # the last token is not fed back
        heads = [bool(routes[b, i, g]) for i in layers for g in range(2)]
        assert report["msr"][b] == pytest.approx(sum(heads) / len(heads))
        prefill = sum(count_pairs(pattern, s, 0, n) for s in heads)
        decoded = sum(count_pairs(pattern, s and decode == "sparse", n, total) for s in heads)
        assert report["esr_prefill"][b] == pytest.approx(1 - prefill / (len(heads) * count_pairs(pattern, False, 0, n)))
        assert report["esr_decode"][b] == pytest.approx(
            1 - decoded / (len(heads) * count_pairs(pattern, False, n, total))
        )
        per_token = 2 * 16 * 4
        assert report["kv_bytes_read"][b] == decoded * per_token
        if use_cache:
            kept = sum(held(pattern, total) if s and decode == "sparse" else total for s in heads)
            assert report["kv_bytes"][b] == kept * per_token
            assert report["kv_bytes_dense"][b] == len(heads) * total * per_token
            assert report["kv_bytes_allocated"][b] >= report["kv_bytes"][b]
        else:
            assert report["kv_bytes"] == report["kv_bytes_dense"] == report["kv_bytes_allocated"] == [0, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [NEEDED + 1, 64, 111, 150])
def test_bytes_after_prefill_equal_the_buffers_to_the_byte(dtype, length):
    model = make_model().to(dtype)
    handle = attach_tiny(model)
    routes = random_routes(model)
    handle.set_routes(routes)
    cache = DynamicCache(config=model.config)
    model(text(length), past_key_values=cache)
    report = handle.report()
    buffers = [x for layer in cache.layers for group in layer.store.groups for x in (group.keys, group.values)]
    real = sum(x.numel() * x.element_size() for x in buffers)
    assert report["kv_bytes"] == report["kv_bytes_allocated"] == [real]
    num_sparse, num_heads = int(routes.sum()), LAYERS * 2
    wanted = (num_heads - num_sparse) * length + num_sparse * held(handle.config.sparse_pattern, length)
    assert real == wanted * 2 * 16 * dtype.itemsize
    assert report["kv_bytes_dense"] == [num_heads * length * 2 * 16 * dtype.itemsize]


@torch.no_grad()
def test_a_forward_outside_of_generate_starts_new_books(model, handle):
    model.generate(text(111), max_new_tokens=5, do_sample=False)
    model(text(70, rows=2), use_cache=False)
    report = handle.report()
    assert report["prompt_tokens"] == [70, 70]
    assert report["esr_decode"] == [None, None] and report["kv_bytes_read"] == [0, 0]
    with handle.disabled():
        model(text(150), use_cache=False)
    assert handle.report()["prompt_tokens"] == [70, 70]


@pytest.mark.parametrize("decode", ["sparse", "full"])
def test_the_last_rows_of_a_triangle_count_as_dense(decode):
    sizes = dict(num_sink_tokens=16, local_window=32, block_size=16)
    model, last = make_model(), 20
    pattern = TriangleConfig(**sizes, num_last_queries=last)
    config = dataclasses.replace(elastic_config(model), sparse_pattern=pattern)
    handle = attach_tiny(model, config=config, decode=decode)
    handle.set_routes("sparse")
    lengths = [150, 70]
    ids, mask, _ = left_padded([text(150)[:, :n] for n in lengths])
    model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    for n, esr, esr_decode in zip(lengths, *map(handle.report().get, ("esr_prefill", "esr_decode")), strict=True):
        total = n + NEW - 1
        shown = visible_mask(pattern.streaming, total)
        shown[n - last : n] = torch.ones(total, total).tril().bool()[n - last : n]
        assert esr == pytest.approx(1 - int(shown[:n].sum()) / (n * (n + 1) // 2))
        causal = sum(range(n + 1, total + 1))
        assert esr_decode == pytest.approx(0 if decode == "full" else 1 - int(shown[n:].sum()) / causal)


def test_before_anything_ran(handle):
    report = handle.report()
    assert report["routes"].shape == (0, LAYERS, 0) and report["msr"] == report["routed"] == []


def test_prefill_and_decode_are_kept_apart(model, handle):
    handle.set_routes("sparse")
    model.generate(text(NEEDED), max_new_tokens=60, do_sample=False)
    report = handle.report()
    assert report["esr_prefill"] == [0.0]  # the window reaches the sink all the way
    assert report["esr_decode"][0] > 0.2 and report["msr"] == [1.0]


def test_chunks_and_padding_do_not_change_the_books(model, handle):
    handle.set_routes(random_routes(model))
    prompts = [text(150), text(100)]
    ids, mask, _ = left_padded(prompts)
    reports = []
    for chunk in (None, 32):
        model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, prefill_chunk_size=chunk)
        reports.append(handle.report())
    for name in ("prompt_tokens", "esr_prefill", "esr_decode", "kv_bytes", "kv_bytes_dense", "kv_bytes_read"):
        assert reports[0][name] == reports[1][name]
        for b, prompt in enumerate(prompts):
            model.generate(prompt, max_new_tokens=4, do_sample=False)
            assert handle.report()[name] == [reports[0][name][b]]


def test_the_config_of_the_tests_is_small_enough_to_bite():
    pattern = elastic_config(make_model()).sparse_pattern
    assert pattern.num_sink_tokens + pattern.local_window == NEEDED < 100
