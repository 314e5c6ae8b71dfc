"""The budget search: what it returns is what it measured, and it leaves no traces when it fails."""

import pytest
import torch

from tiny_models import NEEDED, text


@pytest.fixture
def prompts():
    return [text(80 + 7 * s, seed=s)[0].tolist() for s in range(10)]


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_reaches_the_target_on_the_prompts(model, handle, prompts, target):
    result = handle.calibrate(prompts, target=target)
    assert handle.budget == result["budget"]
    measured = []
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([prompt]), use_cache=False)
            measured += handle.report()["msr"]
    assert result["msr"] == pytest.approx(sum(measured) / 10)
    assert result["tolerance"] == pytest.approx(abs(result["msr"] - target)) and result["tolerance"] <= 0.05


def test_prompts_may_be_tensors(handle, prompts):
    same_long = [prompt[:80] for prompt in prompts]
    assert handle.calibrate(torch.tensor(same_long), target=0.5) == handle.calibrate(same_long, target=0.5)
    as_lists = handle.calibrate(prompts, target=0.5)
    assert handle.calibrate([torch.tensor([p]) for p in prompts], target=0.5) == as_lists


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(target=1.5), "target=1.5"),
        (dict(target=-0.1), "target=-0.1"),
        (dict(prompts=[]), "at least one prompt"),
        (dict(prompts=["a text"]), "got the prompt 'a text'; each prompt is a list of token ids"),
        (dict(prompts=[{"input_ids": text(111)}]), r"got the prompt \{'input_ids'.*as in tokenizer\(text\)"),
        (dict(prompts=[text(111).float()]), "got the prompt tensor.*token ids"),
        (dict(prompts=[text(111, rows=2)]), r"got the prompt tensor.*\(1, T\) tensor"),
        (dict(prompts=[list(range(1, NEEDED + 1))]), f"{NEEDED} tokens is too short.*more than {NEEDED}"),
    ],
)
def test_refusals(handle, prompts, arguments, message):
    handle.budget = 0.25
    with pytest.raises(ValueError, match=message):
        handle.calibrate(**(dict(prompts=prompts, target=0.5) | arguments))
    assert handle.budget == 0.25


def test_given_routes_cannot_be_calibrated(handle, prompts):
    handle.set_routes("sparse")
    with pytest.raises(ValueError, match=r"set_routes\(None\)"):
        handle.calibrate(prompts)


def test_a_failing_model_keeps_the_budget(model, handle, prompts, monkeypatch):
    handle.budget = 0.25
    monkeypatch.setattr(handle, "decide", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        handle.calibrate(prompts, target=0.5)
    assert handle.budget == 0.25
