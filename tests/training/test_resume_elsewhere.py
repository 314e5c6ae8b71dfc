"""Runs that the Trainer of transformers or accelerate keeps go on bit for bit: routers, multipliers, moments, noise."""

import pytest
import torch
from tiny_runs import make_recipe, parts

from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.recipe import OptimizerConfig
from elastic_attention.training.routed_loss import PackStream, RoutedLoss, take_pack

STEPS, CUT = 4, 2


def prepare(folder):
    """The loss, its optimiser and the packs, as a process makes them anew."""
    recipe = make_recipe(folder, optimizer=OptimizerConfig(warmup_ratio=0.0, max_grad_norm=1e9))
    given = parts()
    loss = RoutedLoss(recipe, given["model"])
    packs = PackStream(PackedSteps(recipe.data, given["tokenizer"], seed=recipe.seed, steps=STEPS))
    return recipe, loss, packs, torch.optim.AdamW(loss.parameter_groups())


def assert_same(one, other):
    """Two losses hold the same numbers, and they have learnt."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert max(float(value.max()) for name, value in a.items() if name.startswith("constraint.")) > 0


def run_trainer(folder, work, *, until=None, resume=False):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == until

    recipe, loss, packs, optimizer = prepare(folder)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.data.packs.per_step,
        max_grad_norm=0.0,
        accelerator_config={"dispatch_batches": False},
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        use_cpu=True,
    )
    given = {"train_dataset": packs, "data_collator": take_pack, "optimizers": (optimizer, None)}
    Trainer(model=loss, args=arguments, callbacks=[Stop()], **given).train(resume_from_checkpoint=resume)
    loss.close()
    return loss


def test_the_trainer_of_transformers_goes_on(tmp_path):
    whole = run_trainer(tmp_path, tmp_path / "whole")
    run_trainer(tmp_path, tmp_path / "cut", until=CUT)
    assert not (tmp_path / "cut" / f"checkpoint-{CUT + 1}").exists()
    assert_same(whole, run_trainer(tmp_path, tmp_path / "cut", resume=True))


def run_accelerate(folder, work, *, until=STEPS, resume=False):
    from accelerate import Accelerator

    recipe, loss, packs, optimizer = prepare(folder)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=recipe.data.packs.per_step)
    module, optimizer = accelerator.prepare(loss, optimizer)
    if resume:
        accelerator.load_state(str(work))
    packs.first_step = CUT if resume else 0
    for item in packs:
        if item["step"] == until:
            accelerator.save_state(str(work))
            break
        with accelerator.accumulate(module):
            accelerator.backward(module(**item)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    loss.close()
    return loss


def test_accelerate_goes_on(tmp_path):
    whole = run_accelerate(tmp_path, tmp_path / "unused")
    run_accelerate(tmp_path, tmp_path / "cut", until=CUT)
    assert_same(whole, run_accelerate(tmp_path, tmp_path / "cut", resume=True))


@pytest.mark.parametrize("first", [0, 1])
def test_packs_from_a_step_on(tmp_path, first):
    _, loss, packs, _ = prepare(tmp_path)
    loss.close()
    steps = [item["step"] for item in PackStream(packs.steps, first_step=first)]
    assert steps == [step for step in range(first, STEPS) for _ in range(2)]
