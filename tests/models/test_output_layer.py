"""From hidden states to logits: the weight and the factor, or a refusal."""

import pytest
import torch

from elastic_attention import UnsupportedModel
from elastic_attention.models.output_layer import find_output_layer
from tiny_models import FAMILIES, make_model, text


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_factor_times_the_product(family):
    model = make_model(family)
    weight, factor = find_output_layer(model)
    with torch.no_grad():
        hidden = model.base_model(text(30), use_cache=False).last_hidden_state
        torch.testing.assert_close(model(text(30)).logits, factor * hidden @ weight.T, rtol=1e-4, atol=1e-4)


def test_a_factor_is_found():
    model = make_model("granite", logits_scaling=4.0)
    assert find_output_layer(model)[1] == pytest.approx(0.25)
    assert find_output_layer(make_model())[1] == 1.0


def test_other_logits_are_refused():
    with pytest.raises(UnsupportedModel, match="soft-capped at 5.0"):
        find_output_layer(make_model("gemma3_text", final_logit_softcapping=5.0))
    model = make_model()
    model.lm_head = torch.nn.Linear(48, 97, bias=True)
    with pytest.raises(UnsupportedModel, match="are biased"):
        find_output_layer(model)
    model = make_model()
    model.lm_head.register_forward_hook(lambda module, args, out: out.tanh())
    with pytest.raises(UnsupportedModel, match="relative error"):
        find_output_layer(model)
    with pytest.raises(UnsupportedModel, match="no output layer"):
        find_output_layer(model.model)
