"""Books are kept at every step, so they must not cost more than the rows of a batch are many."""

import pytest

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
