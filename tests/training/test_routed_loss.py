"""The loss as a module: the Trainer of transformers, accelerate, and a loop take the steps of the project's trainer."""

import dataclasses

import pytest
import torch
from tiny_runs import make_recipe, parts
from torch.utils.data import DataLoader

from elastic_attention import RecipeError, attach, find_handle
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.recipe import OptimizerConfig, RouteConfig
from elastic_attention.training.routed_loss import PackStream, RoutedLoss, take_pack
from elastic_attention.training.trainer import train
from made_rows import make_tokenizer

# One optimiser without clipping and schedule, as a Trainer has it.
PLAIN = OptimizerConfig(warmup_ratio=0.0, final_ratio=1.0, max_grad_norm=1e9)


def prepare(folder, **overrides):
    recipe = make_recipe(folder, optimizer=PLAIN, **overrides)
    given = parts()
    loss = RoutedLoss(recipe, given["model"])
    steps = PackedSteps(recipe.data, given["tokenizer"], seed=recipe.seed, steps=recipe.steps)
    return recipe, loss, PackStream(steps)


def assert_same_adapter(folder, loss, recipe, reference=None):
    """The routers are those that `train` makes of the recipe."""
    train(recipe, folder / "reference", **parts())
    loss.export(folder / "found", by="test")
    routers = []
    for name in ("reference/adapter", "found"):
        handle = attach(parts()["model"], folder / name)
        routers.append(handle.routers.state_dict())
    start = RoutedLoss(recipe, parts()["model"]).engine.source.state()
    for name, wanted in routers[0].items():
        torch.testing.assert_close(routers[1][name], wanted, rtol=0, atol=2e-3)  # saved in bfloat16
    assert any((routers[0][name] - start[name]).abs().max() > 4e-3 for name in start)


@pytest.mark.parametrize("recompute_layers", [False, True])
def test_a_loop_of_ones_own(tmp_path, recompute_layers):
    recipe, loss, packs = prepare(tmp_path, recompute_layers=recompute_layers)
    optimizer = torch.optim.AdamW(loss.parameter_groups())
    for i, item in enumerate(packs, 1):
        output = loss(**item)
        (output["loss"] / recipe.data.packs.per_step).backward()
        if i % recipe.data.packs.per_step == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert i == 8 and output["msr"].ndim == 1
    multipliers = torch.cat([p.flatten() for p in loss.constraint.parameters()])
    assert multipliers.min() >= 0 and multipliers.max() > 0
    model = loss.engine.model
    loss.close()
    assert find_handle(model) is None
    assert_same_adapter(tmp_path, loss, recipe)


def test_the_trainer_of_transformers(tmp_path):
    from transformers import Trainer, TrainingArguments

    recipe, loss, packs = prepare(tmp_path)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "hf"),
        max_steps=recipe.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.data.packs.per_step,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        accelerator_config={"dispatch_batches": False},
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    optimizer = torch.optim.AdamW(loss.parameter_groups())
    trainer = Trainer(
        model=loss, args=arguments, train_dataset=packs, data_collator=take_pack, optimizers=(optimizer, None)
    )
    found = trainer.train()
    assert found.global_step == recipe.steps
    loss.close()
    assert_same_adapter(tmp_path, loss, recipe)


def test_accelerate(tmp_path):
    from accelerate import Accelerator

    recipe, loss, packs = prepare(tmp_path)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=recipe.data.packs.per_step)
    module, optimizer = accelerator.prepare(loss, torch.optim.AdamW(loss.parameter_groups()))
    for item in packs:
        with accelerator.accumulate(module):
            accelerator.backward(module(**item)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    loss.close()
    assert_same_adapter(tmp_path, loss, recipe)


def test_masks_are_brought_back_into_their_range(tmp_path):
    recipe, loss, packs = prepare(tmp_path, routes=RouteConfig(source="alpha"))
    (first, *_) = packs
    assert len(loss.parameter_groups()) == 1 and loss.parameter_groups()[0]["weight_decay"] == 0
    with torch.no_grad():
        loss.routes[0].add_(0.5)
    loss(**first)
    assert loss.routes[0].max() == 1


def test_the_model_is_no_part_of_the_module(tmp_path):
    recipe, loss, _ = prepare(tmp_path)
    names = set(loss.state_dict())
    assert all(name.startswith(("routes.", "constraint.")) for name in names)
    groups = loss.parameter_groups()
    assert [group["maximize"] for group in groups] == [False, False, True]
    assert sum(len(group["params"]) for group in groups) == len(list(loss.parameters()))
    decayed = dataclasses.replace(recipe, optimizer=dataclasses.replace(PLAIN, weight_decay=0.1))
    loss.close()
    groups = RoutedLoss(decayed, loss.engine.model).parameter_groups()
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])


def test_batches_of_several_packs_are_refused():
    with pytest.raises(ValueError, match="holds 2 packs"):
        take_pack([{}, {}])


def test_several_workers_of_a_loader_are_refused(tmp_path):
    recipe = make_recipe(tmp_path)
    packs = PackStream(PackedSteps(recipe.data, make_tokenizer(), seed=0, steps=2))
    one, two = (DataLoader(packs, batch_size=None, num_workers=n, collate_fn=lambda x: x) for n in (1, 2))
    assert [item["step"] for item in one] == [0, 0, 1, 1]
    with pytest.raises(RecipeError, match="num_workers"):
        next(iter(two))
