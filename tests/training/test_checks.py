"""What does not fit is said before the first step."""

import dataclasses
import logging

import pytest
import torch
from tiny_runs import make_recipe, parts

from elastic_attention import (
    CheckpointError,
    DataError,
    RecipeError,
    StreamingConfig,
    UnsupportedModel,
    find_handle,
)
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.trainer import train


def test_mixed_dtypes_are_named(tmp_path):
    given = parts()
    given["model"].model.layers[1].mlp.to(torch.float64)
    with pytest.raises(UnsupportedModel, match=r"mixes dtypes: .*float32.*layers\.1\.mlp.*float64"):
        train(make_recipe(tmp_path), tmp_path / "run", **given)


def test_a_tokenizer_of_another_model(tmp_path):
    from tiny_models import make_model

    with pytest.raises(RecipeError, match=r"the data holds the token \d+, the model embeds 97"):
        train(make_recipe(tmp_path), tmp_path / "run", **parts() | {"model": make_model()})


def test_a_tokenizer_that_ends_answers_otherwise(tmp_path):
    given = parts()
    given["model"].config.eos_token_id = given["model"].generation_config.eos_token_id = 5
    with pytest.raises(RecipeError, match=r"ends answers with the token 2 \('<\|end\|>'\), the model '' with \[5\]"):
        train(make_recipe(tmp_path), tmp_path / "run", **given)
    given["model"].generation_config.eos_token_id = [5, 2]
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **given)


def teach(model, recipe, tokenizer):
    """A model that has read the samples."""
    data = PackedSteps(recipe.data, tokenizer, seed=0, steps=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        tokens = data[0][0].input_ids[None]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_tokenizer_whose_numbers_mean_something_else(tmp_path, caplog):
    given, recipe = parts(), make_recipe(tmp_path, steps=1)
    teach(given["model"], recipe, given["tokenizer"])
    train(recipe, tmp_path / "run", **given)
    assert "mean nothing" not in caplog.text
    weight = given["model"].model.embed_tokens.weight.data
    weight[4:] = weight[4:].roll(7, dims=0)  # to the model, every token is another one now
    train(recipe, tmp_path / "other", **given)
    assert "To the model '' the tokens of the tokenizer '' mean nothing" in caplog.text


def test_samples_beyond_the_reach_of_the_model(tmp_path):
    from tiny_models import make_model

    model = make_model(vocab_size=600, max_position_embeddings=128)
    with pytest.raises(RecipeError, match="the longest sample has 400 tokens, the model reads 128"):
        train(make_recipe(tmp_path), tmp_path / "run", **parts() | {"model": model})


def test_heldout_files_are_checked_before_the_first_step(tmp_path):
    recipe = make_recipe(tmp_path, packs={"heldout_files": (str(tmp_path / "nowhere.jsonl"),)})
    with pytest.raises(DataError, match="nowhere.jsonl"):
        train(recipe, tmp_path / "run", **parts())
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    file = tmp_path / "taken"
    file.touch()
    for output in (file, file / "run"):
        with pytest.raises(RecipeError, match="taken is a file"):
            train(make_recipe(tmp_path), output)  # before a model is loaded: there is none of this name
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RecipeError, match="is read-only"):
        train(make_recipe(tmp_path), tmp_path / "run")


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    recipe = make_recipe(tmp_path, model=str(tmp_path / "no model"))
    with pytest.raises(RecipeError, match="The model .*no model' of the recipe cannot be loaded"):
        train(recipe, tmp_path / "run")


def test_a_run_says_what_it_learns_from(tmp_path, caplog):
    recipe = make_recipe(tmp_path, steps=1)
    with caplog.at_level(logging.INFO):
        given = parts()
        teach(given["model"], recipe, given["tokenizer"])
        train(recipe, tmp_path / "run", **given)
    assert (
        "Samples: 8 code, 8 few_shot, 8 single_qa, of 5,285 tokens together" in caplog.text
        and "; 6 held out." in caplog.text
    )
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_category_without_samples_and_prompts_too_short_are_told(tmp_path, caplog):
    wide = StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128)
    recipe = make_recipe(tmp_path, steps=1, pattern=wide)
    intervals = recipe.intervals | {"poetry": recipe.intervals["code"]}
    train(dataclasses.replace(recipe, intervals=intervals), tmp_path / "run", **parts())
    assert "No sample is of poetry, which [intervals] names." in caplog.text
    assert "24 of 24 samples have no more than 2176 tokens" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **parts())
    with pytest.raises(
        CheckpointError, match=r"is of another model than tiny: source/.* is \[\d.*there and \[\d.* here"
    ):
        train(make_recipe(tmp_path, steps=1), tmp_path / "run", **parts("qwen2"))


def test_an_error_of_the_device_is_no_word_about_the_checkpoint(tmp_path, monkeypatch):
    train(make_recipe(tmp_path, steps=2), tmp_path / "run", max_seconds=0, **parts())

    def fail(self, state):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "load", fail)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(make_recipe(tmp_path, steps=2), tmp_path / "run", **parts())


def test_a_pack_without_room_is_named(tmp_path, monkeypatch):
    def refuse(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Engine, "accumulate", refuse)
    with pytest.raises(RecipeError, match=r"Step 1: cpu has no room for a pack of \d+ tokens. Set recompute_layers"):
        train(make_recipe(tmp_path), tmp_path / "run", **parts())


def test_a_model_that_cannot_do_what_the_recipe_asks_is_given_back(tmp_path, monkeypatch):
    def refuse(model, *_, **__):
        raise UnsupportedModel("cannot run its layers again")

    monkeypatch.setattr("elastic_attention.training.engine.recompute_layers", refuse)
    given = parts()
    with pytest.raises(UnsupportedModel, match="layers again"):
        train(make_recipe(tmp_path, recompute_layers=True), tmp_path / "run", **given)
    assert find_handle(given["model"]) is None and all(p.requires_grad for p in given["model"].parameters())


def test_a_model_that_cannot_be_fused_does_not_stay_recomputed(tmp_path, monkeypatch):
    def refuse(model, *_, **__):
        raise UnsupportedModel("no layers with norms")

    monkeypatch.setattr("elastic_attention.training.engine.fuse_layers", refuse)
    given = parts()
    with pytest.raises(UnsupportedModel, match="norms"):
        train(make_recipe(tmp_path, recompute_layers=True, fuse_layers=True), tmp_path / "run", **given)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in given["model"].modules())
