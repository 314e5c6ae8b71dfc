"""`generate` over the page pool, in plain PyTorch, says what it says over row tensors."""

import copy

import pytest
import torch
from transformers import DynamicCache

from elastic_attention.models.handle import Handle
from elastic_attention.paging import PagedCache
from tiny_models import attach_tiny, left_padded, make_model, random_routes, text

NEW = 40


@pytest.fixture(params=["sparse", "full"])
def decode(request):
    return request.param


def run_both(monkeypatch, decode, program, *, batch=3):
    """Results of `program(model, handle)` over row tensors and over pages; the routes are given."""
    results = []
    for is_paged in (False, True):
        monkeypatch.setattr(Handle, "_is_paged", lambda self, is_paged=is_paged: is_paged)
        model = make_model()
        handle = attach_tiny(model, decode=decode)
        handle.set_routes(random_routes(model, batch=batch) if batch else random_routes(model))
        results.append(program(model, handle))
    return results


PROGRAMS = {
    "greedy": {},
    "beams": dict(num_beams=3),
    "returned twice": dict(do_sample=True, num_return_sequences=2),
    "chunked": dict(prefill_chunk_size=64),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_generate(monkeypatch, decode, name):
    ids, mask, _ = left_padded([text(150, seed=s)[:, :n] for s, n in enumerate([150, 70, 47])])

    def program(model, handle):
        torch.manual_seed(0)
        options = dict(do_sample=False) | PROGRAMS[name]
        out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **options)
        return out, handle.report()["kv_bytes"]

    (rows, row_bytes), (pages, page_bytes) = run_both(monkeypatch, decode, program)
    assert torch.equal(rows, pages) and row_bytes == page_bytes


def test_turns_crops_and_copies(monkeypatch, decode):
    def program(model, handle):
        cache, said = DynamicCache(config=model.config), []
        for n in (100, 160, 180):
            out = model.generate(text(n), past_key_values=cache, max_new_tokens=5, do_sample=False)
            said.append(out)
            cache.crop(n)
        twin = copy.deepcopy(cache)
        for one in (cache, twin):
            said.append(model(text(200)[:, 180:], past_key_values=one).logits)
        return said, {type(layer.store) for layer in cache.layers}

    with torch.no_grad():
        (rows, _), (pages, kinds) = run_both(monkeypatch, decode, program, batch=None)
    assert kinds == {PagedCache}
    for a, b in zip(rows, pages, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_candidates_that_are_taken_back(monkeypatch, decode):
    def program(model, handle):
        return model.generate(text(150), max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=4)

    rows, pages = run_both(monkeypatch, decode, program, batch=None)
    assert torch.equal(rows, pages)
