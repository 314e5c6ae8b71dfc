"""Layer routing on a model: what the router reads, how routes reach the heads, and the adapter it is saved in."""

import json

import pytest
import torch
from transformers import DynamicCache

from elastic_attention import RouterMismatch, UnsupportedModel, attach
from elastic_attention.models.checkpoint import CONFIG_FILE
from elastic_attention.models.families import find_attention_modules, queries_before_rope
from elastic_attention.router import RouteNoise, RouteSampler
from tiny_models import LAYERS, POOLED, attach_tiny, elastic_config, left_padded, text

LENGTH = 150


@pytest.fixture
def handle(model):
    return attach_tiny(model, config=elastic_config(model, granularity="layer"))


@torch.no_grad()
def read_queries(model, ids):
    """Mean query of each layer over the first and last POOLED tokens and all heads, all heads full."""
    seen, hooks = [], []

    def note(module, args, kwargs):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        queries = queries_before_rope(module, hidden)
        seen.append(torch.cat([queries[:, :POOLED], queries[:, -POOLED:]], 1).mean((1, 2)))

    for module in find_attention_modules(model).values():
        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def balance(router, pooled):
    """Shift the bias so that half of these sequences are sparse."""
    logits = router.logits(pooled)
    router.router_mlp[4].bias[1] -= (logits[:, 1] - logits[:, 0]).sort().values[3:5].mean()


@torch.no_grad()
def test_the_first_layer_is_routed_by_its_mean_query(model, handle):
    ids = text(LENGTH, rows=8)
    pooled = read_queries(model, ids)[0]
    balance(handle.routers[0], pooled)
    logits = handle.routers[0].logits(pooled)
    wanted = logits[:, 1] > logits[:, 0]
    model(ids, use_cache=False)
    routes = handle.report()["routes"]
    assert routes.shape == (8, LAYERS, 2) and wanted.any() and not wanted.all()
    assert torch.equal(routes[:, 0], wanted[:, None].expand(8, 2))


@torch.no_grad()
def test_routes_do_not_depend_on_how_the_prompt_arrives(model, handle):
    rows = [text(LENGTH), text(90, seed=3)]
    alone = []
    for row in rows:
        model(row, use_cache=False)
        alone.append(handle.report()["routes"][0])
    ids, mask, positions = left_padded(rows)
    model(ids, attention_mask=mask, position_ids=positions)
    assert torch.equal(handle.report()["routes"], torch.stack(alone))
    handle.prefill_policy = "deferred"
    model.generate(rows[0], max_new_tokens=2, prefill_chunk_size=64)
    first_layer = handle.report()["routes"][0, 0]  # deeper layers see dense keys while the prompt arrives in chunks
    assert torch.equal(first_layer, alone[0][0])


@torch.no_grad()
def test_generating_and_a_second_turn_keep_the_routes(model, handle):
    cache = DynamicCache(config=model.config)
    model.generate(text(LENGTH), past_key_values=cache, max_new_tokens=3)
    before = handle.report()["routes"]
    assert handle.report()["routed"] == [True] and handle.report()["esr_decode"][0] is not None
    model.generate(text(LENGTH + 40), past_key_values=cache, max_new_tokens=3)
    assert torch.equal(handle.report()["routes"], before)


@torch.no_grad()
def test_the_probe_decides_once_a_layer(model, handle):
    handle.prefill_policy = "probe"
    model.generate(text(LENGTH, rows=6), max_new_tokens=2, prefill_chunk_size=50)
    routes = handle.report()["routes"]
    assert routes.any() and torch.equal(routes, routes[:, :, :1].expand_as(routes))


@torch.no_grad()
def test_budget_and_msr_count_layers(model, handle):
    ratios = []
    for budget in (-1e4, 0.0, 1e4):
        handle.budget = budget
        model(text(LENGTH), use_cache=False)
        ratios.append(handle.report()["msr"][0])
    assert ratios[0] == 0.0 and ratios[2] == 1.0 and ratios[1] * LAYERS == pytest.approx(round(ratios[1] * LAYERS))


@torch.no_grad()
def test_round_trip_of_a_layer_adapter(model, handle, tmp_path):
    ids = text(LENGTH, rows=6)
    logits, routes = model(ids, use_cache=False).logits, handle.report()["routes"]
    handle.save_pretrained(tmp_path / "layer")
    handle.detach()
    assert json.loads((tmp_path / "layer" / CONFIG_FILE).read_text())["granularity"] == "layer"
    again = attach(model, tmp_path / "layer")
    assert again.config == handle.config and again.config.router.task_width == 2 * 16
    assert torch.equal(model(ids, use_cache=False).logits, logits) and torch.equal(again.report()["routes"], routes)


def test_an_adapter_whose_granularity_was_changed_still_loads_its_widths(model, handle, tmp_path):
    """The widths are in the configuration, so a head adapter with a layer's weights is refused by shape alone."""
    handle.save_pretrained(tmp_path)
    data = json.loads((tmp_path / CONFIG_FILE).read_text())
    data["granularity"], data["router"]["task_width"] = "head", 16
    (tmp_path / CONFIG_FILE).write_text(json.dumps(data))
    handle.detach()
    with pytest.raises(RouterMismatch, match="does not hold the routers"):
        attach(model, tmp_path)


def test_sampled_layer_routes_reach_every_head_and_learn(model, handle):
    handle.routers.requires_grad_(True)
    sampler = RouteSampler(noise=RouteNoise(seed=0, step=0, sample_ids=torch.arange(3)), temperature=1.0)
    with handle.routed_by(lambda i, pooled: handle.routers[i](pooled, layer=i, sampler=sampler)) as record:
        loss = model(text(LENGTH, rows=3), use_cache=False).logits.float().logsumexp(-1).mean()
    routes = record.stack()
    assert routes.shape == (3, LAYERS, 2) and torch.equal(routes[..., 0], routes[..., 1])
    (loss + routes.mean()).backward()
    assert all(p.grad.abs().sum() > 0 for p in handle.routers.parameters())


def test_a_gated_query_projection_is_refused(model):
    module = find_attention_modules(model)[0]
    module.q_proj = torch.nn.Linear(48, 2 * 6 * 16, bias=False)
    with pytest.raises(UnsupportedModel, match="`q_proj` of LlamaAttention gives 192 features for 6 heads of 16"):
        queries_before_rope(module, torch.zeros(1, 2, 48))
    del module.q_proj
    with pytest.raises(UnsupportedModel, match="LlamaAttention has neither `q_proj` nor `qkv_proj`"):
        queries_before_rope(module, torch.zeros(1, 2, 48))
