"""Books are kept at every step: they cost no more than the rows of a batch are many, and hold no memory."""

import gc
import weakref

import pytest
from transformers import DynamicCache

from elastic_attention.cache import ElasticCache
from tiny_models import LAYERS, attach_tiny, generate, make_model, text


@pytest.mark.parametrize("rows", [1, 5])
def test_each_layer_is_asked_once_a_step(rows, monkeypatch):
    asked, count = [], ElasticCache.count_allocated_bytes
    monkeypatch.setattr(ElasticCache, "count_allocated_bytes", lambda store: asked.append(1) or count(store))
    model = make_model()
    handle = attach_tiny(model)
    generate(model, text(80, rows=rows), max_new_tokens=4)
    assert len(asked) == 4 * LAYERS and len(handle.report()["kv_bytes_allocated"]) == rows


@pytest.mark.parametrize("is_generated", [True, False])
def test_books_keep_no_cache_alive(is_generated):
    model = make_model()
    handle = attach_tiny(model)
    cache = DynamicCache(config=model.config)
    if is_generated:
        generate(model, text(80), past_key_values=cache, max_new_tokens=4)
    else:
        model(text(80), past_key_values=cache)
    stores = [weakref.ref(layer.store) for layer in cache.layers]
    del cache
    gc.collect()
    assert [store() for store in stores] == [None] * LAYERS
    assert handle.report()["kv_bytes"][0] > 0
