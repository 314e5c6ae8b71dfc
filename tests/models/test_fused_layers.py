import pytest
import torch
from torch import nn
from transformers.models.qwen3 import modeling_qwen3

from elastic_attention.errors import UnsupportedModel
from elastic_attention.models.fused_layers import fuse_layers
from elastic_attention.models.recompute import recompute_layers
from tiny_models import make_model


def test_fused_layers_compute_the_same_and_are_undone():
    model = make_model("qwen3").requires_grad_(False)
    embedded = torch.randn(1, 24, model.config.hidden_size)
    rotate = modeling_qwen3.apply_rotary_pos_emb

    def run():
        inputs = embedded.clone().requires_grad_()
        out = model(inputs_embeds=inputs, use_cache=False).logits
        (gradient,) = torch.autograd.grad(out.square().sum(), inputs)
        return out.detach(), gradient

    wanted = run()
    for recomputes in (False, True):
        fuse_layers(model, True, backend="eager")
        recompute_layers(model, recomputes)
        assert model.model.layers[0].mlp._compiled_call_impl is not None
        for one, other in zip(run(), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    recompute_layers(model, False)
    fuse_layers(model, False)
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert modeling_qwen3.apply_rotary_pos_emb is rotate
    assert all(torch.equal(one, other) for one, other in zip(run(), wanted, strict=True))


def test_the_rotation_of_a_model_in_adapters_is_fused_too():
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(make_model("qwen3"), peft.LoraConfig(target_modules=["q_proj"], r=4))
    rotate = modeling_qwen3.apply_rotary_pos_emb
    fuse_layers(lora, True, backend="eager")
    assert modeling_qwen3.apply_rotary_pos_emb.plain is rotate
    fuse_layers(lora, False)
    assert modeling_qwen3.apply_rotary_pos_emb is rotate


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UnsupportedModel, match="Linear has no layers with norms and MLPs"):
        fuse_layers(nn.Linear(2, 2), True)
