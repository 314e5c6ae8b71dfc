"""Official checkpoints become adapters that decide the same routes as the released forward."""

import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from elastic_attention import attach
from elastic_attention.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_adapter
from elastic_attention.models.convert import convert_checkpoint
from elastic_attention.models.families import find_attention_modules, keys_before_rope, queries_before_rope
from elastic_attention.models.tensor_folder import TensorFolder
from released_models import (
    LAYERS,
    ROUTER,
    released_is_full,
    router_tensors,
    write_release,
)
from tiny_models import make_model, text

LENGTH = 300  # longer than sink and window below
SMALL = dict(sink_size=128, local_window_size=128)


@torch.no_grad()
def read_states(model, ids, project):
    """Keys or queries before RoPE of every layer, all heads full."""
    seen = {}

    def note(module, args, kwargs):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen[module.layer_idx] = project(module, hidden)

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in find_attention_modules(model).values()]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
@pytest.mark.parametrize("num_logits", [2, 1])
@pytest.mark.parametrize(("method", "family"), [("elastic", "qwen3"), ("elastic", "llama"), ("flux", "qwen3")])
def test_routes_are_those_of_the_released_forward(tmp_path, out, method, family, num_logits):
    options = dict(use_softmax=num_logits == 2, **SMALL)
    folder = write_release(tmp_path / "src", method, family=family, num_logits=num_logits, **options)
    facts = convert_checkpoint(folder, out)
    assert facts["kind"] == method and facts["granularity"] == {"elastic": "head", "flux": "layer"}[method]
    config, routers = load_adapter(out)
    model, ids = make_model(family), text(LENGTH, rows=12)
    states = read_states(model, ids, queries_before_rope if method == "flux" else keys_before_rope)
    pool = 150 if method == "flux" else 100
    assert config.router.pooled_tokens == pool
    tensors, all_routes = router_tensors(method, num_logits), []
    for layer in range(LAYERS):
        is_full = released_is_full(tensors, layer, states[layer], pool, method)
        pooled = torch.cat([states[layer][:, :pool], states[layer][:, -pool:]], 1).mean(1)
        assert torch.equal(routers[layer](pooled, layer=layer), ~is_full)
        all_routes.append(~is_full)
    assert 0.05 < torch.stack(all_routes).float().mean() < 0.95
    handle = attach(model, out)
    model(ids, use_cache=False)  # routes of the first layer do not depend on other layers' routes
    found = handle.report()["routes"][:, 0]
    assert torch.equal(found, all_routes[0].expand_as(found))


@torch.no_grad()
def test_short_prompts_count_their_overlap_twice_as_released(tmp_path, out):
    """150 tokens at each end of 260: 40 tokens count twice."""
    model = make_model("qwen3")
    convert_checkpoint(write_release(tmp_path / "src", "flux", **SMALL), out)
    ids = text(260, rows=12)
    states = read_states(model, ids, queries_before_rope)
    wanted = ~released_is_full(router_tensors("flux"), 0, states[0], 150, "flux")
    handle = attach(model, out)
    assert handle.config.router.count_overlap_twice
    pooled = []
    with handle.routed_by(lambda index, x: pooled.append(x) or torch.zeros(12, 2).bool(), is_sampling=False):
        model(ids, use_cache=False)
    wanted_pool = torch.cat([states[0][:, :150], states[0][:, -150:]], 1).mean((1, 2))
    torch.testing.assert_close(pooled[0][:, 0], wanted_pool, rtol=1e-4, atol=1e-5)
    model(ids, use_cache=False)
    assert torch.equal(handle.report()["routes"][:, 0, :1], wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_backbone_of_a_release_loads_as_a_stock_model(tmp_path, out, family):
    """What the notes advise where q, k and v were trained."""
    folder = write_release(tmp_path / "src", "flux", family=family, **SMALL)
    convert_checkpoint(folder, out)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert torch.equal(model(text(LENGTH), use_cache=False).logits, make_model(family)(text(LENGTH)).logits)
    handle = attach(model, out)
    model(text(LENGTH), use_cache=False)
    assert handle.report()["routed"] == [True]


def test_weights_keep_their_precision_and_rows_are_swapped(tmp_path, out):
    convert_checkpoint(write_release(tmp_path / "src"), out)
    ours, theirs = load_file(out / WEIGHTS_FILE), router_tensors("elastic")
    assert {t.dtype for t in ours.values()} == {torch.bfloat16} and len(ours) == 30
    last = ROUTER.format(1, "cls_router_head_agnostic", 4, "weight")
    assert torch.equal(ours["layers.1.router_mlp.4.weight"], theirs[last].flip(0))
    first = ROUTER.format(2, "cls_feat_extractor", 0, "bias")
    assert torch.equal(ours["layers.2.task_mlp.0.bias"], theirs[first])
    assert sorted(os.listdir(out)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_one_logit_becomes_two_rows_and_says_so(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src", num_logits=1, use_softmax=False), out)
    theirs = router_tensors("elastic", 1)[ROUTER.format(0, "cls_router_head_agnostic", 4, "weight")]
    assert torch.equal(load_file(out / WEIGHTS_FILE)["layers.0.router_mlp.4.weight"], torch.cat([theirs, 0 * theirs]))
    notes = " ".join(facts["notes"])
    assert "[z, 0]" in notes and "normalises" in notes
    assert load_adapter(out)[0].training["converted"]["notes"] == facts["notes"]
    flux = convert_checkpoint(write_release(tmp_path / "f", "flux", num_logits=1, use_softmax=None), tmp_path / "g")
    assert "[z, 0]" in " ".join(flux["notes"]) and "normalises" not in " ".join(flux["notes"])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_do_not_matter(tmp_path, out, shards):
    convert_checkpoint(write_release(tmp_path / "src", shards=shards), out)
    convert_checkpoint(write_release(tmp_path / "one", shards=1), tmp_path / "other")
    assert (out / WEIGHTS_FILE).read_bytes() == (tmp_path / "other" / WEIGHTS_FILE).read_bytes()


def test_only_router_tensors_are_read(tmp_path, out, monkeypatch):
    read, original = [], TensorFolder.read

    def note(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(TensorFolder, "read", note)
    convert_checkpoint(write_release(tmp_path / "src"), out)
    assert len(read) == 10 * LAYERS and all("cls_" in name for name in read)
