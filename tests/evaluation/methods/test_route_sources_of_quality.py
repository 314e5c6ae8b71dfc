import pytest
import torch

from elastic_attention import AdapterError, attach
from elastic_attention.evaluation.methods import Method, prepare_source
from elastic_attention.models.checkpoint import save_static_routes
from tiny_models import attach_tiny, elastic_config, random_routes


def test_routers_of_a_folder_decide_as_if_they_were_attached(model, tmp_path):
    handle = attach_tiny(model)
    handle.save_pretrained(tmp_path)
    pooled = torch.randn(50, 2, 16)
    wanted = handle.decide(1, pooled)
    source = prepare_source(Method(name="routed", folder=str(tmp_path)), handle)(torch.arange(50))
    assert torch.equal(source(1, pooled), wanted) and wanted.any() and not wanted.all()


@pytest.mark.parametrize("change", [dict(pooled_tokens=11), dict(granularity="layer"), dict(local_window=64)])
def test_routers_that_read_something_else_are_refused(model, tmp_path, change):
    attach_tiny(model).save_pretrained(tmp_path)
    model._elastic_handle.detach()
    handle = attach(model, elastic_config(model, **change))
    with pytest.raises(ValueError, match=r"attach\(model, "):
        prepare_source(Method(name="routed", folder=str(tmp_path)), handle)


def test_static_routes_come_from_their_folder(model, handle, tmp_path):
    mask = random_routes(model)
    save_static_routes(tmp_path, mask, {}, {})
    source = prepare_source(Method(name="static", folder=str(tmp_path)), handle)(torch.arange(3))
    assert torch.equal(source(2, torch.zeros(3, 2, 16)), mask[2].expand(3, 2))
    with pytest.raises(AdapterError, match="has no static_routes.safetensors"):
        prepare_source(Method(name="static", folder=str(tmp_path / "absent")), handle)
