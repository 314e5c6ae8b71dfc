"""Every command and every block of docs/training.md runs, on a tiny model and with few steps."""

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from elastic_attention.cli import main
from elastic_attention.training.data.formats import FORMATS
from elastic_attention.training.recipe import load_recipe
from elastic_attention.training.sources import SOURCES
from made_datasets import write_file
from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
FIRST_RUN, SOURCE, TEMPERATURE, EXTENDED = (body for kind, body in BLOCKS if kind == "toml")
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.strip().splitlines()]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
RECORDS = next(body for kind, body in BLOCKS if kind == "json")
CODER = "qwen2.5-coder-head-router"
SMALLER = {
    "steps = 100": "steps = 2\ncheckpoint_every = 1",
    "validate_every = 25": "validate_every = 1",
    "tokens = 16384": "tokens = 300",
    "per_step = 8": "per_step = 2",
}


def shrink(text):
    for before, after in SMALLER.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the page asks its reader to have, only smaller."""
    folder = tmp_path_factory.mktemp("page")
    for name, family in (("my-model", "llama"), ("qwen2.5-coder-0.5b-instruct", "qwen2")):
        make_model(family, vocab_size=600, max_position_embeddings=4096).save_pretrained(folder / "models" / name)
        make_tokenizer().save_pretrained(folder / "models" / name)
    (folder / "my-run.toml").write_text(shrink(FIRST_RUN))
    for name in ("train", "heldout"):
        (folder / f"{name}.jsonl").write_text(RECORDS * 3)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    full = folder / "recipes" / f"{CODER}.toml"
    recipe = load_recipe(full)
    full.rename(full.with_stem("full"))
    full.write_text(
        'extends = "full.toml"\nsteps = 2\nvalidate_every = 1\n[data]\nworkers = 0\n'
        "[data.packs]\ntokens = 700\nper_step = 2\n"
    )
    (folder / ".data/mixture-32k").mkdir(parents=True)
    for name in ("train", "heldout"):
        write_rows(folder / f".data/mixture-32k/{name}.jsonl", make_rows(12, categories=tuple(recipe.intervals)))
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("ELASTIC_ATTENTION_HOME", str(place / "home"))


def run(command, monkeypatch):
    program, *arguments = shlex.split(command)
    if program == "touch":
        Path(arguments[0]).touch()
    elif program == "python":
        assert arguments[0] == "-m"
        if arguments[1].endswith("corpora"):  # fetches packages; its options are what can be wrong here
            arguments = [*arguments[:2], "--help"]
        else:
            texts = arguments.index("--corpora")
            del arguments[texts : texts + 2]
            arguments = ["-m", arguments[1], "mixture", *arguments[3:], "--max-tokens", "4096"]
            arguments += ["--samples", "1", "--heldout", "1"]
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(arguments[1], run_name="__main__")
        assert not stop.value.code
    else:
        assert program == "elastic-attn"
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code


def test_the_page_from_top_to_bottom(place, monkeypatch):
    for command in COMMANDS:
        run(command, monkeypatch)
        if command.startswith("elastic-attn train my-run.toml") and not (place / "runs/stopped").exists():
            first = (place / "runs/my-run/log.jsonl").read_text()
            (place / "runs/stopped").touch()
    log = [json.loads(line) for line in (place / "runs/my-run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and first.count("\n") == 2
    listed = re.findall(r"^\| `([^|]*)` \|", TEXT.partition("| File | Holds |")[2].partition("\n\n")[0], re.MULTILINE)
    names = {name.strip("`/ ") for item in listed for name in item.split(",")}
    assert names == {path.name for path in (place / "runs/my-run").iterdir()}
    assert (place / "curves.svg").read_text().startswith("<?xml") and (place / "runs/coder.json").is_file()
    assert (place / "mixture/train.jsonl").is_file()
    for code in PYTHON:
        exec(compile(code, "docs/training.md", "exec"), {})
    assert (place / "runs/trainer/adapter/elastic_config.json").is_file()


def test_recipes_of_the_page_load(place):
    (place / "extended.toml").write_text(EXTENDED)
    assert load_recipe("extended.toml").routes.source == "layer_router"
    source = tomllib.loads(SOURCE)["data"]["packs"]["sources"][0]
    write_file(place / source["files"][0], source["format"], 3)
    (place / "papers.toml").write_text((place / "my-run.toml").read_text() + SOURCE + TEMPERATURE)
    papers = load_recipe("papers.toml")
    assert papers.data.packs.sources[0].format == "musique" and papers.temperature.schedule == "exponential"


def test_the_page_names_everything_that_there_is():
    for name in (*SOURCES, *FORMATS):
        assert name in TEXT
    for recipe in (ROOT / "recipes").glob("*.toml"):
        ending = recipe.stem.removeprefix("qwen2.5-coder")
        assert recipe.name in TEXT or f"`{ending}`" in TEXT
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists()
