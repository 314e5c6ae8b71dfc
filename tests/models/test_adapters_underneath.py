"""Models that are copied, or carry a LoRA, while routers are attached."""

import copy

import pytest
import torch

from elastic_attention import find_handle
from tiny_models import (
    attach_tiny,
    elastic_config,
    generate,
    make_model,
    text,
)


def test_deep_copied_models_go_their_own_ways(model, handle):
    base = generate(make_model(), text(111))
    routed = generate(model, text(111))
    twin = copy.deepcopy(model)
    other = find_handle(twin)
    assert other is not handle and other.model is twin
    assert torch.equal(generate(twin, text(111)), routed)
    other.set_routes("full")
    assert torch.equal(generate(twin, text(111)), base) and torch.equal(generate(model, text(111)), routed)
    other.detach()
    assert torch.equal(generate(twin, text(111)), base)
    assert find_handle(model) is handle and torch.equal(generate(model, text(111)), routed)
    handle.detach()
    assert torch.equal(generate(model, text(111)), base)


@pytest.mark.parametrize("on", ["peft model", "base model"])
def test_lora_underneath(on):
    peft = pytest.importorskip("peft")
    model = make_model()
    lora = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "k_proj"], r=4, init_lora_weights=False)
    )
    lora.eval()
    base = generate(lora, text(111))
    assert not torch.equal(base, generate(make_model(), text(111)))
    handle = attach_tiny(lora if on == "peft model" else model, config=elastic_config(model))
    assert find_handle(lora) is handle is find_handle(model)
    handle.set_routes("full")
    assert torch.equal(generate(lora, text(111)), base)
    handle.set_routes(None)
    routed = generate(lora, text(111))
    assert handle.report()["routed"] == [True] and handle.report()["msr"][0] > 0
    names = set(lora.state_dict())
    handle.detach()
    assert set(lora.state_dict()) == names and not any("router" in name for name in names)
    assert torch.equal(generate(lora, text(111)), base) and not torch.equal(routed, base)


def test_loading_an_adapter_afterwards_and_removing_it(model, handle):
    peft = pytest.importorskip("peft")
    routed = generate(model, text(111))
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False)).eval()
    assert not torch.equal(generate(lora, text(111)), routed)
    assert torch.equal(generate(lora.unload(), text(111)), routed)
