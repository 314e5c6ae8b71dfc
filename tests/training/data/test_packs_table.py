"""The [data.packs] table of a recipe."""

import pytest

from elastic_attention import RecipeError
from elastic_attention.training.recipe import PackConfig, load_recipe

RECIPE = 'model = "m"\nsteps = 3\n[intervals]\ncode = { low = 0.8, high = 1.0 }\n'


def read(tmp_path, table):
    path = tmp_path / "run.toml"
    path.write_text(RECIPE + table)
    return load_recipe(path).data


def test_table_and_its_defaults(tmp_path):
    assert read(tmp_path, "").packs == read(tmp_path, "[data.packs]\n").packs == PackConfig()
    packs = read(
        tmp_path,
        '[data.packs]\nfiles = ["a.jsonl"]\nheldout_files = ["b.jsonl"]\nover_long = "skip"\n'
        "template = { enable_thinking = false }\n",
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
        ('[data.packs]\nfiles = ["a.jsonl"]\n', "validate_every needs data.packs.heldout_files"),
        ('[data]\nkinds = ["needle"]\n[data.packs]\nfiles = ["a.jsonl"]\nheldout_files = ["b"]\n', "give one"),
    ],
)
def test_bad_tables_name_the_key(tmp_path, table, named):
    with pytest.raises(RecipeError, match=named):
        read(tmp_path, table)
