"""Every recipe of the project runs: on a tiny model of its family, and a few records in the format it reads."""

import dataclasses
from pathlib import Path

import pytest
from tiny_runs import parts

from elastic_attention import RecipeError, StreamingConfig, XAttentionConfig
from elastic_attention.models.checkpoint import CONFIG_FILE, STATIC_FILE
from elastic_attention.training.recipe import load_recipe
from elastic_attention.training.trainer import train
from made_datasets import write_file
from made_rows import make_rows, write_rows

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in ROOT.glob("*.toml"))
FAMILIES = {"qwen2.5": "qwen2", "qwen3": "qwen3", "llama": "llama", "smollm2": "llama"}
SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
SMALL_XA = XAttentionConfig(block_size=16, stride=4)


def shrink(recipe, folder):
    """One short step; what is read and what learns stay as they are."""
    packs = {"tokens": 640, "per_step": 1, "cache": str(folder / "cache"), "samples": 6}
    lengths = (512,) if not recipe.data.packs.has_files else recipe.data.lengths
    data = dataclasses.replace(
        recipe.data,
        workers=0,
        corpora=None,
        lengths=lengths,
        packs=dataclasses.replace(recipe.data.packs, **packs),
        **({"kinds": ("needle", "classes")} if not recipe.data.packs.has_files else {}),
    )
    pattern = SMALL_XA if isinstance(recipe.pattern, XAttentionConfig) else SMALL
    validate_every = min(recipe.validate_every, 1)
    return dataclasses.replace(
        recipe, steps=1, data=data, pattern=pattern, validation_samples=1, validate_every=validate_every
    )


def write_data(recipe, folder):
    """A few rows at each path that the recipe names, in the format that it names."""
    packs = recipe.data.packs
    for file in (*packs.files, *packs.heldout_files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / file, make_rows(12, categories=tuple(recipe.intervals)))
    for source in packs.sources:
        for file in source.files:
            write_file(folder / file, source.format, 3 * (source.shots + 1))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs(tmp_path, monkeypatch, name):
    recipe = load_recipe(ROOT / name)
    monkeypatch.chdir(tmp_path)
    write_data(recipe, tmp_path)
    small = shrink(recipe, tmp_path)
    family = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    result = train(small, tmp_path / "run", **parts(family))
    assert result["is_finished"]
    assert set(result["data"]["categories"]) == set(recipe.intervals) and result["data"]["skipped"] == 0
    is_static = recipe.routes.source in ("static", "hard_concrete", "alpha")
    assert (tmp_path / "run" / "adapter" / (STATIC_FILE if is_static else CONFIG_FILE)).is_file()
    if recipe.data.packs.has_heldout:
        assert set(result["validation"]["categories"]) == set(recipe.intervals)


def test_the_paper_runs_read_its_five_data_sets():
    for name in ("qwen3-4b.toml", "qwen3-8b.toml", "llama-3.1-8b.toml"):
        recipe = load_recipe(ROOT / name)
        assert {s.format for s in recipe.data.packs.sources} == {"chatqa2", "musique", "colt", "gov_report", "xsum"}
        assert (recipe.steps, recipe.data.packs.per_step, recipe.data.packs.tokens) == (300, 24, 65_536)


def test_the_baselines_share_data_steps_and_mean_sparsity():
    routed = load_recipe(ROOT / "qwen2.5-coder-head-router.toml")
    for name in RECIPES:
        if name.startswith("qwen2.5-coder"):
            other = load_recipe(ROOT / name)
            assert (other.data, other.steps, other.target_msr) == (routed.data, routed.steps, routed.target_msr)


# One recipe that extends another ----------------------------------------------------------------------------------

BASE = """
model = "m"
steps = 3
[routes]
pooled_tokens = 7
[pattern]
local_window = 1024
[intervals]
code = { low = 0.8, high = 1.0 }
"""


def write(tmp_path, text, name="over.toml"):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_tables_are_merged_and_kinds_replace(tmp_path):
    text = 'extends = "base.toml"\nsteps = 5\n[routes]\nsource = "static"\n'
    text += "[intervals]\nqa = { low = 0.1, high = 0.2 }\n"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.model, recipe.steps, recipe.routes.source, recipe.routes.pooled_tokens) == ("m", 5, "static", 7)
    assert set(recipe.intervals) == {"code", "qa"} and recipe.pattern.local_window == 1024
    write(tmp_path, 'extends = "over.toml"\n[pattern]\nkind = "xattention"\n', "third.toml")
    assert load_recipe(tmp_path / "third.toml").pattern == XAttentionConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "../base.toml"\n', "in the same folder"),
        ('extends = "over.toml"\n', "in the same folder"),
        ("extends = 3\n", "in the same folder"),
        ('extends = "none.toml"\n', "none.toml"),
        ('extends = "base.toml"\nstep = 3\n', "unknown keys.*step"),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, text))
