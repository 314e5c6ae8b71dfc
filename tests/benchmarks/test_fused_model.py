"""The fused norms, rotations and gates compute what transformers computes."""

import importlib
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton")

import fused_model
import model_bench
import transformers
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


def test_a_fused_model_gives_the_same_logits_and_is_put_back():
    model = model_bench.build_model("tiny", DEVICE).float()
    home = importlib.import_module(type(model).__module__)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.3)
        ids = torch.randint(97, (1, 9), device=DEVICE)
        plain, wanted = home.apply_rotary_pos_emb, model(input_ids=ids).logits
        for _ in range(2):
            with fused_model.fused_elementwise(model):
                assert home.apply_rotary_pos_emb is not plain
                torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
            assert home.apply_rotary_pos_emb is plain
            assert torch.equal(model(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_fused_decode_steps_give_the_same_logits(kind):
    config = getattr(transformers, kind + "Config")(
        hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, vocab_size=97,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
        ids, wanted, found = torch.randint(97, (2, 12), device=DEVICE), [], []
        for outs, context in ((wanted, nullcontext()), (found, fused_model.fused_elementwise(model))):
            with context:
                cache = model(input_ids=ids[:, :9], use_cache=True).past_key_values
                for i in range(9, 12):
                    outs.append(model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits)
                names = {type(m).__name__ for m in model.modules() if "forward" in vars(m)}
                assert not names or {"Linear", f"{kind}DecoderLayer", f"{kind}RMSNorm", f"{kind}MLP"} == names
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_other_models_are_refused():
    class OtherMLP(torch.nn.Module):
        act_fn = torch.nn.GELU()

    model = type("Other", (torch.nn.Sequential,), {"__module__": modeling_qwen3.__name__})(OtherMLP())
    with pytest.raises(ValueError, match="no SiLU gate"), fused_model.fused_elementwise(model):
        pass
