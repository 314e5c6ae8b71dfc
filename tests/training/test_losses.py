"""Losses of packs: against the model's own loss, and packed against alone."""

import dataclasses
import functools

import pytest
import tiny_runs
import torch
import torch.nn.functional as F
from tiny_runs import parts

from elastic_attention.errors import AlreadyAttached, UnsupportedModel
from elastic_attention.models.answers import IGNORED
from elastic_attention.router import RouteNoise, RouteSampler
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.recipe import DataConfig, ObjectiveConfig, RouteConfig
from elastic_attention.training.sources import SOURCES
from tiny_models import attach_tiny

ROUNDING = 700 * torch.finfo(torch.float32).eps  # a pack has up to 700 tokens, so sums of so many terms


def make_recipe(folder=None, packs=None, **overrides):
    """Packs of more samples than those of the trainer's tests."""
    return tiny_runs.make_recipe(folder, packs={"tokens": 700} | (packs or {}), **overrides)


def open_engine(recipe, family="llama"):
    given = parts(family)
    data = PackedSteps(recipe.data, given["tokenizer"], seed=0, steps=recipe.steps)
    return Engine(recipe, given["model"]), data


def cut(batch):
    """The samples of a pack, each in a pack of its own; their shares of the loss stay."""
    for i, (first, last) in enumerate(zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True)):
        tokens = {name: getattr(batch, name)[first:last] for name in ("input_ids", "targets", "position_ids")}
        rows = {name: getattr(batch, name)[i : i + 1] for name in ("prompt_lengths", "sample_ids", "weights")}
        rows |= {name: getattr(batch, name)[i : i + 1] - first for name in ("context", "question", "response")}
        names = {name: getattr(batch, name)[i : i + 1] for name in ("categories", "tasks")}
        edges = torch.tensor([0, last - first], dtype=torch.int32)
        yield dataclasses.replace(batch, **tokens, **rows, **names, cu_seqlens=edges)


def run_step(engine, packs, multiplier=0.3):
    """Gradients, and sums by category, of one step."""
    with torch.no_grad():
        for parameter in engine.constraint.parameters():
            parameter.fill_(multiplier)
    engine.start_step(1)
    for pack in packs:
        engine.accumulate(pack)
    learnt = [*engine.source.parameters_to_train(), *engine.constraint.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learnt], engine.tally.table.clone()


def assert_near(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= ROUNDING * b.norm().clamp(min=1e-3)


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("source", SOURCES)
def test_packed_is_unpacked(tmp_path, source, loss_on):
    recipe = make_recipe(tmp_path, routes=RouteConfig(source=source, init_std=0.5, pooled_tokens=8))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, loss_on=loss_on))
    engine, data = open_engine(recipe)
    packs = data[0]
    assert max(len(pack.categories) for pack in packs) > 2
    packed, sums = run_step(engine, packs)
    alone, alone_sums = run_step(engine, [sample for pack in packs for sample in cut(pack)])
    assert_near(packed, alone)
    assert sum(float(g.abs().sum()) for g in packed) > 0
    torch.testing.assert_close(sums, alone_sums, rtol=ROUNDING, atol=ROUNDING)
    routes = sums[:, 1 + engine.tally.fields.index("msr")]
    if source != "hard_concrete":  # its routes are no whole numbers
        assert torch.equal(routes, alone_sums[:, 1 + engine.tally.fields.index("msr")])


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "granite"])
def test_packed_is_unpacked_in_other_families(tmp_path, family):
    engine, data = open_engine(make_recipe(tmp_path), family)
    packed, sums = run_step(engine, data[0])
    alone, alone_sums = run_step(engine, [sample for pack in data[0] for sample in cut(pack)])
    assert_near(packed, alone)
    torch.testing.assert_close(sums, alone_sums, rtol=ROUNDING, atol=ROUNDING)


def test_accumulation_of_packs_is_one_pack(tmp_path):
    """k packs of one sample, k / 2 of two and one of all: the same gradient, in any order."""
    recipe = make_recipe(tmp_path, packs={"tokens": 2000, "per_step": 1, "lookahead": 24})
    engine, data = open_engine(recipe)
    (pack,) = data[0]
    assert len(pack.categories) >= 12
    whole, _ = run_step(engine, [pack])
    samples = list(cut(pack))
    for parts_of_step in (samples, samples[::-1]):
        assert_near(run_step(engine, parts_of_step)[0], whole)


def test_layers_that_run_again_change_nothing(tmp_path):
    engine, data = open_engine(make_recipe(tmp_path))
    kept = run_step(engine, data[0])
    engine.close()
    for options in ({}, {"keep_attention": True}, {"whole_layers": 1}, {"whole_layers": 3}):
        engine, data = open_engine(make_recipe(tmp_path, recompute_layers=True, **options))
        running_again = [layer.training for layer in engine.model.model.layers]
        assert running_again == [True] * (3 - options.get("whole_layers", 0)) + [False] * options.get("whole_layers", 0)
        again = run_step(engine, data[0])
        assert all(torch.equal(a, b) for a, b in zip(kept[0], again[0], strict=True)) and torch.equal(kept[1], again[1])
        engine.close()
        assert not any(module.training for module in engine.model.modules())


def test_whole_layers_that_the_model_does_not_have(tmp_path):
    with pytest.raises(UnsupportedModel, match="has 3 layers; set whole_layers=4 to no more"):
        open_engine(make_recipe(tmp_path, recompute_layers=True, whole_layers=4))
    with pytest.raises(ValueError, match="whole_layers=1 needs recompute_layers = true"):
        make_recipe(whole_layers=1)


def test_adapters_underneath_are_part_of_the_model(tmp_path):
    peft = pytest.importorskip("peft")
    given = parts()
    lora = peft.get_peft_model(given["model"], peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False))
    learnt = [name for name, p in lora.named_parameters() if p.requires_grad]
    engine, recipe = Engine(make_recipe(tmp_path), lora), make_recipe(tmp_path)
    data = PackedSteps(recipe.data, given["tokenizer"], seed=recipe.seed, steps=recipe.steps)
    adapted, _ = run_step(engine, data[0])
    engine.close()
    assert learnt == [name for name, p in lora.named_parameters() if p.requires_grad]
    with lora.disable_adapter():
        engine = Engine(recipe, lora)
        plain, _ = run_step(engine, data[0])
        engine.close()
    assert any(not torch.equal(a, b) for a, b in zip(adapted, plain, strict=True))


def test_lm_loss_is_the_mean_cross_entropy_of_each_answer(tmp_path):
    engine, data = open_engine(make_recipe(tmp_path))
    for sample in cut(data[0][0]):
        engine.handle.set_routes("sparse")
        with torch.no_grad():
            logits = engine.model(input_ids=sample.input_ids[None], use_cache=False).logits[0]
        first, last = sample.response[0].tolist()
        wanted = F.cross_entropy(logits[first - 1 : last - 1], sample.input_ids[first:last])
        engine.source.inference = lambda: torch.ones(3, 2, dtype=torch.bool)
        found = engine.measure(sample)
        torch.testing.assert_close(found["loss"], wanted[None])
        hits = (logits.argmax(-1)[first - 1 : last - 1] == sample.input_ids[first:last]).float().mean()
        torch.testing.assert_close(found["accuracy"], hits[None])


def test_distillation_is_the_distance_at_the_predicting_positions(tmp_path):
    recipe = make_recipe(tmp_path, objective=ObjectiveConfig(loss="distillation"))
    engine, data = open_engine(recipe)
    (sample, *_) = cut(data[0][0])
    engine.start_step(0)
    engine.accumulate(sample)
    place = engine.tally.fields.index("loss") + 1

    def read():
        with torch.no_grad():
            return engine.model.base_model(input_ids=sample.input_ids[None], use_cache=False).last_hidden_state[0]

    noise = RouteNoise(seed=0, step=0, sample_ids=sample.sample_ids)
    sampler = RouteSampler(noise=noise, temperature=engine.temperature)
    draw = functools.partial(engine.source.sample, sampler=sampler)
    with engine.handle.routed_by(draw, prompt_lengths=sample.prompt_lengths):
        routed = read()
    engine.handle.set_routes("full")
    counted = sample.targets != IGNORED
    wanted = (routed - read()).square().mean(-1)[counted].mean()
    assert wanted > 0
    torch.testing.assert_close(engine.tally.table[:, place].sum().float(), wanted, rtol=1e-4, atol=1e-9)


def test_full_heads_are_at_no_distance(tmp_path):
    """Alpha starts at one: the blend is the dense model, and no gradient reaches the reference."""
    engine, data = open_engine(make_recipe(tmp_path, routes=RouteConfig(source="alpha", pooled_tokens=8)))
    gradients, sums = run_step(engine, data[0])
    assert sums[:, 1 + engine.tally.fields.index("loss")].max() < 1e-8
    assert engine.loss_name == "distillation" and len(gradients) == 1


def test_all_tokens_count_more_targets(tmp_path):
    recipe = make_recipe(tmp_path)
    config = dataclasses.replace(recipe.data, loss_on="all")
    assert isinstance(config, DataConfig)
    some, every = (PackedSteps(c, parts()["tokenizer"], seed=0, steps=1)[0][0] for c in (recipe.data, config))
    assert (some.targets != IGNORED).sum() < (every.targets != IGNORED).sum()


def test_a_model_that_is_attached_already_stays_as_it_was(tmp_path):
    model = parts()["model"].train()
    handle = attach_tiny(model)
    with pytest.raises(AlreadyAttached):
        Engine(make_recipe(tmp_path), model)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    handle.detach()
