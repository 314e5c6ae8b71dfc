"""Whole runs: what they leave behind, and what a kill, a stop or a broken file does to them."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import make_recipe, parts

from elastic_attention import CheckpointError, DataError, RecipeError, TrainingDiverged, UnsupportedModel, attach
from elastic_attention.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from elastic_attention.training import checkpoints, trainer
from elastic_attention.training.checkpoints import FILE, PREVIOUS
from elastic_attention.training.engine import Engine
from elastic_attention.training.recipe import ObjectiveConfig, RouteConfig
from elastic_attention.training.sources import SOURCES
from elastic_attention.training.trainer import train
from made_rows import make_rows, write_rows


def tensors(folder):
    return load_file(folder / FILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run that nothing disturbed, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = make_recipe(folder)
    train(recipe, folder / "whole", **parts())
    return folder / "whole", recipe


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_equal_runs(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


def test_run_learns_exports_and_loads(tmp_path):
    recipe = make_recipe(tmp_path, validate_every=2)
    result = train(recipe, tmp_path / "run", **parts())
    assert result["is_finished"] and result["steps"] == 4
    assert result["data"]["categories"]["code"]["samples"] == 8 and result["tokens"] > 1000
    assert set(result["validation"]["categories"]) == set(recipe.intervals)
    facts = result["validation"]["categories"]["code"]
    assert facts["samples"] == 2 and (facts["low"], facts["high"]) == (0.8, 1.0)
    assert facts["outside"] == pytest.approx(max(0.8 - facts["msr"], 0.0))
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {name for line in lines for name in line["msr"]} == set(recipe.intervals)
    assert [("validation" in line) for line in lines] == [False, True, False, False]
    assert max(lines[-1]["multiplier_linear"].values()) > 0 and lines[-1]["regularization"] > 0
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["lm_loss"] + lines[-1]["regularization"], rel=1e-5)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    handle = attach(parts()["model"], tmp_path / "run" / "adapter")
    assert handle.config.training["recipe"]["steps"] == 4
    assert handle.config.router.pooled_tokens == 8


def test_the_model_comes_back_untouched(tmp_path):
    given = parts()
    ids = torch.randint(1, 97, (1, 60))
    before = given["model"](ids).logits
    weights = {name: p.clone() for name, p in given["model"].state_dict().items()}
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **given)
    assert torch.equal(given["model"](ids).logits, before)
    assert all(torch.equal(p, weights[name]) for name, p in given["model"].state_dict().items())
    assert all(p.requires_grad for p in given["model"].parameters())


def test_the_place_of_the_cache_and_the_number_of_workers_change_nothing(tmp_path, whole):
    recipe = make_recipe(tmp_path, checkpoint_every=2)
    packs = dataclasses.replace(recipe.data.packs, cache=str(tmp_path / "other cache"))
    other = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=1, packs=packs))
    first = train(dataclasses.replace(recipe, validate_every=0), tmp_path / "two", max_seconds=0, **parts())
    assert first["steps"] == 1
    train(other, tmp_path / "two", **parts())
    assert_equal_runs(whole[0], tmp_path / "two")


# Kills ------------------------------------------------------------------------------------------------------------


def dying(function, at):
    """`function`, but the call number `at` does not come back."""
    calls = iter(range(1, 10_000))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return call


MOMENTS = [
    (Engine, "accumulate", 6),
    (Engine, "finish_step", 3),
    (checkpoints, "write_file", 3),
    (checkpoints.os, "replace", 3),
    (checkpoints.os, "replace", 4),
    (trainer.TrainingLog, "write", 3),
    (trainer.TrainingLog, "sync", 3),
    (torch.optim.AdamW, "step", 3),
]


@pytest.mark.parametrize(("owner", "name", "at"), MOMENTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, whole, owner, name, at):
    folder, recipe = whole
    monkeypatch.setattr(owner, name, dying(getattr(owner, name), at))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", **parts())
    monkeypatch.undo()
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "msr": {"code": 0.5}')  # half a line, as a kill leaves it
    train(recipe, tmp_path / "killed", **parts())
    assert_equal_runs(folder, tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "adapter", PREVIOUS, FILE, "log.jsonl", "tensorboard",
    ]  # fmt: skip


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "head_router"])
def test_every_source_resumes_bit_equal(tmp_path, source):
    objective = ObjectiveConfig(constraint="interval") if source == "static" else ObjectiveConfig()
    routes = RouteConfig(source=source, init_std=0.5, pooled_tokens=8)
    recipe = make_recipe(tmp_path, routes=routes, objective=objective, steps=2)
    train(recipe, tmp_path / "whole", **parts())
    assert train(recipe, tmp_path / "cut", max_seconds=0, **parts())["steps"] == 1
    assert train(recipe, tmp_path / "cut", **parts())["is_finished"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_not_trained_again(tmp_path, whole):
    folder, recipe = whole
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")  # as a kill between the last step and the export leaves it
    again = train(recipe, tmp_path / "run", **parts())
    assert again["tokens"] == 0 and set(again["validation"]["categories"]) == set(recipe.intervals)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "run" / "adapter" / name).read_bytes() == (folder / "adapter" / name).read_bytes()


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from tiny_runs import make_recipe, parts
from elastic_attention.training.trainer import train
train(make_recipe(Path({folder!r}), steps=400), Path({folder!r}) / "run", **parts())
"""


def ending_at(step):
    """An engine whose run stops after `step` steps."""

    class Ending(Engine):
        def agree(self, wish):
            return self.step + 1 >= step

    return Ending


def test_a_real_kill(tmp_path):
    here = Path(__file__).parent
    code = SCRIPT.format(paths=[str(here), str(here.parent)], folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
    recipe = make_recipe(tmp_path, steps=400)
    stopped = train(recipe, tmp_path / "run", max_seconds=0, **parts())
    assert 3 <= stopped["steps"] < 400
    whole = train(recipe, tmp_path / "whole", build_engine=ending_at(stopped["steps"]), **parts())
    assert whole["steps"] == stopped["steps"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_run_after_its_step(tmp_path, monkeypatch, whole, number, workers):
    folder, recipe = whole
    data = dataclasses.replace(recipe.data, workers=workers)
    recipe = dataclasses.replace(recipe, checkpoint_every=0, data=data)
    accumulate = Engine.accumulate

    def interrupted(self, batch):
        accumulate(self, batch)
        if self.step == 1 and not calls:
            for process in multiprocessing.active_children():  # a terminal tells all of them
                os.kill(process.pid, number)
            calls.append(os.kill(os.getpid(), number))

    calls = []
    monkeypatch.setattr(Engine, "accumulate", interrupted)
    before = signal.getsignal(number)
    assert train(recipe, tmp_path / "run", **parts())["steps"] == 2
    assert signal.getsignal(number) is before
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_second_signal_is_obeyed_at_once(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    accumulate = Engine.accumulate

    def interrupted(self, batch):
        accumulate(self, batch)
        if self.step == 1:
            for _ in range(2):  # two signals that wait together would be one
                handler = signal.getsignal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                while signal.getsignal(signal.SIGINT) == handler:
                    time.sleep(0.001)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "accumulate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", **parts())
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_file_stops_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    assert train(make_recipe(tmp_path), tmp_path / "run", **parts())["steps"] == 1
    assert not (tmp_path / "run" / "stop").exists()
    assert train(make_recipe(tmp_path), tmp_path / "run", **parts())["is_finished"]


# Broken files -----------------------------------------------------------------------------------------------------


def test_checkpoint_of_another_run(tmp_path):
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **parts())
    with pytest.raises(CheckpointError, match="another recipe"):
        train(make_recipe(tmp_path, steps=1, seed=5), tmp_path / "run", **parts())
    write_rows(tmp_path / "more.jsonl", make_rows(25))
    other = make_recipe(tmp_path, steps=1, packs={"files": (str(tmp_path / "more.jsonl"),)})
    with pytest.raises(CheckpointError, match="other data"):
        train(other, tmp_path / "run", **parts())


def flip_a_bit(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:100], lambda data: b""])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, whole, damage):
    folder, recipe = whole
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / FILE
    path.write_bytes(damage(path.read_bytes()))
    train(recipe, tmp_path / "run", **parts())
    assert f"{FILE} is damaged" in caplog.text and "the checkpoint before it" in caplog.text
    assert_equal_runs(folder, tmp_path / "run")
    for name in (FILE, PREVIOUS):
        (tmp_path / "run" / name).write_bytes(damage((tmp_path / "run" / name).read_bytes()))
    with pytest.raises(CheckpointError, match="is damaged.*is damaged.*Remove"):
        train(recipe, tmp_path / "run", **parts())


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    saved, calls = os.fsync, iter(range(100))

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").count(FILE) and next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="step 3 could not be written .*No space left.*free some"):
        train(recipe, tmp_path / "run", **parts())
    monkeypatch.undo()
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_full_disk_under_the_log_is_named(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    log = trainer.TrainingLog(tmp_path, 0)
    log._stream = Full()
    with pytest.raises(CheckpointError, match="step 3 .No space left"):
        log.write(3, {"loss": 1.0})


# Numbers that are none, and what does not fit ---------------------------------------------------------------------


def poison(monkeypatch, steps, sample=None):
    """Losses that are no number in these steps, of one sample or of all."""
    accumulate = Engine.hidden_states

    def hidden_states(self, batch):
        states = accumulate(self, batch)
        if self.step in steps:
            first = 0 if sample is None else sample
            states = states * torch.where(torch.arange(len(states)) >= first, float("nan"), 1.0)[:, None]
        return states

    monkeypatch.setattr(Engine, "hidden_states", hidden_states)


def test_a_loss_that_is_no_number_stops_before_its_step(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    recipe = dataclasses.replace(recipe, checkpoint_every=0)
    with monkeypatch.context() as patch:
        poison(patch, {2})
        with pytest.raises(TrainingDiverged, match=r"Step 3: loss nan.*samples \[\d+.*on_nan = 'skip'"):
            train(recipe, tmp_path / "run", **parts())
    assert len(lines_of(tmp_path / "run")) == 2
    train(recipe, tmp_path / "run", **parts())  # once the cause is gone, it goes on as if nothing had been
    assert_equal_runs(folder, tmp_path / "run")


def test_steps_without_a_number_may_be_skipped(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path, on_nan="skip")
    poison(monkeypatch, {1})
    train(recipe, tmp_path / "run", **parts())
    assert [line.get("is_skipped", False) for line in lines_of(tmp_path / "run")] == [False, True, False, False]
    assert all(torch.isfinite(t).all() for t in tensors(tmp_path / "run").values())
    poison(monkeypatch, {0, 1, 2, 3})
    with pytest.raises(TrainingDiverged, match="Step 3"):
        train(recipe, tmp_path / "other", **parts())


def test_mixed_dtypes_are_named(tmp_path):
    given = parts()
    given["model"].model.layers[1].mlp.to(torch.float64)
    with pytest.raises(UnsupportedModel, match=r"mixes dtypes: .*float32.*layers\.1\.mlp.*float64"):
        train(make_recipe(tmp_path), tmp_path / "run", **given)


def test_a_tokenizer_of_another_model(tmp_path):
    from tiny_models import make_model

    with pytest.raises(RecipeError, match=r"the data holds the token \d+, the model embeds 97"):
        train(make_recipe(tmp_path), tmp_path / "run", **parts() | {"model": make_model()})


def test_samples_beyond_the_reach_of_the_model(tmp_path):
    from tiny_models import make_model

    model = make_model(vocab_size=600, max_position_embeddings=128)
    with pytest.raises(RecipeError, match="the longest sample has 400 tokens, the model reads 128"):
        train(make_recipe(tmp_path), tmp_path / "run", **parts() | {"model": model})


def test_a_run_without_heldout_files_says_so(tmp_path):
    result = train(make_recipe(tmp_path, steps=1, packs={"heldout_files": ()}), tmp_path / "run", **parts())
    assert result["validation"] is None and result["is_finished"]


def test_heldout_files_are_checked_before_the_first_step(tmp_path):
    recipe = make_recipe(tmp_path, packs={"heldout_files": (str(tmp_path / "nowhere.jsonl"),)})
    with pytest.raises(DataError, match="nowhere.jsonl"):
        train(recipe, tmp_path / "run", **parts())
    assert not (tmp_path / "run").exists()


def test_generated_samples_train(tmp_path):
    from elastic_attention.training.recipe import DataConfig, Interval, PackConfig

    packs = PackConfig(samples=6, tokens=1400, per_step=1, cache=str(tmp_path / "cache"))
    recipe = make_recipe(
        steps=2,
        data=DataConfig(kinds=("needle", "classes"), lengths=(512,), packs=packs),
        intervals={"sensitive": Interval(low=0.4, high=0.5), "robust": Interval(low=0.8, high=1.0)},
        validation_samples=1,
    )
    result = train(recipe, tmp_path / "run", **parts())
    assert {name: facts["samples"] for name, facts in result["validation"]["tasks"].items()} == {
        "needle": 1, "classes": 1,
    }  # fmt: skip
