"""What a run is: what decides its result counts, what does not may differ."""

import dataclasses
import json

import pytest
from tiny_runs import make_recipe

from elastic_attention.training.identity import fingerprint, identify_run
from elastic_attention.training.recipe import OptimizerConfig, TemperatureConfig

RECIPE = make_recipe()


def with_data(**changes):
    return dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, **changes))


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(RECIPE, checkpoint_every=7, validate_every=3, validation_samples=9, on_nan="skip"),
        dataclasses.replace(RECIPE, recompute_layers=True, keep_attention=True, whole_layers=2, fast_gradients=True),
        with_data(workers=3, packs=dataclasses.replace(RECIPE.data.packs, cache="elsewhere", files=("moved.jsonl",))),
        dataclasses.replace(RECIPE, temperature=TemperatureConfig(rate=0.9, final_p=3.0)),  # not read by a cosine
    ],
)
def test_what_may_differ(other):
    assert fingerprint(other, "data") == fingerprint(RECIPE, "data")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (dataclasses.replace(RECIPE, steps=9), "steps is 9 there and 4 here"),
        (dataclasses.replace(RECIPE, optimizer=OptimizerConfig(weight_decay=0.5)), "optimizer.weight_decay is 0.5"),
        (with_data(packs=dataclasses.replace(RECIPE.data.packs, per_step=3)), "data.packs.per_step is 3 there and 2"),
        (
            dataclasses.replace(RECIPE, temperature=TemperatureConfig(schedule="exponential")),
            "temperature.schedule is exponential there and absent here",
        ),
        (dataclasses.replace(RECIPE, temperature=TemperatureConfig(noise_end=0.1)), "temperature.noise_end is 0.1"),
        (dataclasses.replace(RECIPE, intervals={"code": RECIPE.intervals["code"]}), "intervals.few_shot.high is"),
    ],
)
def test_what_counts_is_named(other, said):
    mine, theirs = identify_run(RECIPE, "data"), identify_run(other, "data")
    assert mine.digest != theirs.digest
    assert said in mine.explain_difference(theirs.to_json())


def test_other_samples_and_many_differences():
    mine, theirs = identify_run(RECIPE, "one"), identify_run(RECIPE, "two")
    assert mine.digest != theirs.digest
    assert mine.explain_difference(theirs.to_json()) == "the samples or the tokenizer differ"
    assert "differ" in mine.explain_difference(None)
    other = json.loads(mine.to_json())
    other["recipe"] |= {f"key{i}": i for i in range(9)}
    assert "; 5 more keys differ" in mine.explain_difference(json.dumps(other))


def test_runs_of_older_versions_are_known():
    """Keys that came later do not count while they say what was done before."""
    assert fingerprint(RECIPE, "data") == "90e2e438f870f65a"
