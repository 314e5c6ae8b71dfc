"""The fused norms, rotations and gates compute what transformers computes."""

import importlib

import pytest
import torch

pytest.importorskip("triton")

import fused_model
import gpu_model
from transformers.models.qwen3 import modeling_qwen3

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 7)])
@pytest.mark.parametrize("shares_angles", [True, False])
def test_rotation(batch, tokens, shares_angles):
    q = torch.randn(batch, tokens, 6, 16, device=DEVICE).transpose(1, 2)
    k = torch.randn(batch, tokens, 2, 16, device=DEVICE).transpose(1, 2)
    angles = torch.randn(1 if shares_angles else batch, tokens, 8, device=DEVICE).repeat(1, 1, 2)
    wanted = modeling_qwen3.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    found = fused_model.rotate(q, k, angles.cos(), angles.sin())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert a.transpose(1, 2).is_contiguous()


def test_gate():
    x, y = torch.randn(2, 3, 500, device=DEVICE), torch.randn(2, 3, 500, device=DEVICE)
    torch.testing.assert_close(fused_model.gate(torch.cat([x, y], -1)), torch.nn.functional.silu(x) * y)


def test_a_fused_model_gives_the_same_logits(monkeypatch):
    model = gpu_model.build_model("tiny", DEVICE, 64).float()
    home = importlib.import_module(type(model).__module__)
    monkeypatch.setattr(home, "apply_rotary_pos_emb", home.apply_rotary_pos_emb)  # put back afterwards
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.3)
        ids = torch.randint(97, (1, 9), device=DEVICE)
        wanted = model(input_ids=ids).logits
        fused_model.fuse_elementwise(model)
        assert home.apply_rotary_pos_emb is fused_model.rotate
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_other_models_are_refused():
    class OtherMLP(torch.nn.Module):
        act_fn = torch.nn.GELU()

    with pytest.raises(ValueError, match="no SiLU gate"):
        fused_model.fuse_elementwise(torch.nn.Sequential(OtherMLP()))
