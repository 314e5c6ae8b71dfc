"""The [data.packs] table of a recipe."""

import pytest
from made_rows import make_tokenizer

from elastic_attention import RecipeError
from elastic_attention.training.batches import StepDataset
from elastic_attention.training.recipe import DataConfig, PackConfig, load_recipe

RECIPE = 'model = "m"\nsteps = 3\n[intervals]\ncode = { low = 0.8, high = 1.0 }\n'


def read(tmp_path, table):
    path = tmp_path / "run.toml"
    path.write_text(RECIPE + table)
    return load_recipe(path).data


def test_table_and_its_defaults(tmp_path):
    assert read(tmp_path, "").packs is None
    assert read(tmp_path, "[data.packs]\n").packs == PackConfig()
    packs = read(
        tmp_path, '[data.packs]\nfiles = ["a.jsonl"]\nover_long = "skip"\ntemplate = { enable_thinking = false }\n'
    ).packs
    assert packs.files == ("a.jsonl",) and packs.template == {"enable_thinking": False}
    assert (packs.tokens, packs.per_step) == (65_536, 24)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("[data.packs]\nfile = []\n", "file"),
        ("[data.packs]\ntokens = 0\n", "data.packs.tokens=0"),
        ("[data.packs]\nlookahead = 0\n", "data.packs.lookahead=0"),
        ('[data.packs]\nover_long = "drop"\n', "'drop' is unknown; use one of"),
        ('[data]\nkinds = ["needle"]\n[data.packs]\nfiles = ["a.jsonl"]\n', "give one of them"),
    ],
)
def test_bad_tables_name_the_key(tmp_path, table, named):
    with pytest.raises(RecipeError, match=named):
        read(tmp_path, table)


def test_padded_batches_refuse_packs():
    with pytest.raises(RecipeError, match=r"\[data.packs\] asks for packs"):
        StepDataset(DataConfig(packs=PackConfig()), make_tokenizer(), seed=0, steps=1)
