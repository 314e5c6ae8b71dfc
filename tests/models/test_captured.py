"""A captured decoder whose step the host runs, since a graph needs a GPU: what one step serves, and what is refused."""

import pytest
import torch
from transformers import DynamicCache

from captured_caches import CASES, run_cases
from elastic_attention import ElasticAttentionError, UnsupportedCache
from elastic_attention.models.captured import CapturedDecoder, generate_captured
from elastic_attention.models.handle import Handle
from tiny_models import attach_tiny, make_model, text


class EagerGraph:
    """A graph that runs its step when it is replayed, as the host would."""

    def __init__(self, decoder):
        self.decoder = decoder

    def replay(self):
        decoder = self.decoder
        with torch.no_grad(), decoder.handle.without_books():
            decoder.logits = decoder._run()
        decoder.tokens.copy_(decoder.sampling.choose(decoder.logits)[:, None])
        decoder._positions += 1
        for layer in decoder.cache.layers:
            layer.advance(-1)


@pytest.fixture
def prefilled(monkeypatch):
    """A handle whose cache lies in pages, that cache after a prompt, and the first token."""
    monkeypatch.setattr(Handle, "_is_paged", lambda self: True)
    monkeypatch.setattr(CapturedDecoder, "_capture", lambda decoder: EagerGraph(decoder))
    model = make_model()
    handle = attach_tiny(model)
    handle.set_routes("sparse")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(text(100), past_key_values=cache).logits[:, -1].argmax(-1)
    return handle, cache, first


def test_steps_say_what_generate_says(prefilled):
    handle, cache, first = prefilled
    decoder = CapturedDecoder(handle, cache, first, max_new_tokens=20)
    new = [first] + [decoder.step()[:, 0].clone() for _ in range(20)]
    wanted = handle.model.generate(text(100), max_new_tokens=21, do_sample=False)
    assert torch.equal(torch.stack(new, 1), wanted[:, 100:])


def test_one_decoder_serves_every_length_and_routing(prefilled):
    handle, *_ = prefilled
    wanted, got = run_cases(handle.model, handle, CapturedDecoder, num_new=30)
    for name in CASES:
        assert torch.equal(got[name], wanted[name]), name


def test_a_cache_that_moved_is_refused(prefilled):
    handle, cache, first = prefilled
    decoder = CapturedDecoder(handle, cache, first, max_new_tokens=20)
    decoder.step()
    cache.batch_select_indices(torch.tensor([0, 0]))
    with pytest.raises(ElasticAttentionError, match="new decoder"):
        decoder.step()


def test_no_more_steps_than_there_is_memory_for(prefilled):
    decoder = CapturedDecoder(*prefilled, max_new_tokens=1)
    decoder.step()
    with pytest.raises(ElasticAttentionError, match="max_new_tokens"):
        decoder.step()


def test_a_cache_on_several_devices_is_refused(prefilled):
    handle, cache, first = prefilled
    cache.layers[1].store.device_lengths = cache.layers[1].store.device_lengths.to("meta")
    with pytest.raises(UnsupportedCache, match="'cpu', 'meta'"):
        CapturedDecoder(handle, cache, first, max_new_tokens=2)


def test_a_cache_of_row_tensors_is_refused():
    model = make_model()
    handle, cache = attach_tiny(model), DynamicCache(config=model.config)
    with torch.no_grad():
        model(text(100), past_key_values=cache)
    with pytest.raises(UnsupportedCache, match="page pool"):
        CapturedDecoder(handle, cache, torch.tensor([5]), max_new_tokens=2)


def test_answers_end_as_those_of_generate(prefilled):
    handle, *_ = prefilled
    ids = text(100, rows=2)
    plain = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 40}
    said = handle.model.generate(ids, **plain)[:, 100:]
    ends = int(said[0, 0]), int(said[1, 15])
    wanted = handle.model.generate(ids, **plain, eos_token_id=list(ends), pad_token_id=0)
    got = generate_captured(handle, ids, max_new_tokens=40, eos_token_ids=ends)
    assert torch.equal(got, wanted) and got.shape[1] < 140
    assert (got == 0).any(1).tolist() == [True, False], "the first row ends before the other"
