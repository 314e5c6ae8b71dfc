"""What every page says can be done: links lead somewhere, commands have these options, Python blocks import what is."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from elastic_attention.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def read(page):
    return page.read_text(encoding="utf-8")


def list_blocks(*kinds):
    """(page, text) of the blocks of these kinds."""
    return [(page, body) for page in PAGES for kind, body in BLOCK.findall(read(page)) if kind in kinds]


def list_commands():
    """(page, words) of every line that starts one of this project's programs: the program and what stands behind it."""
    for page, body in list_blocks("bash"):
        for line in body.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)(elastic-attn|elastic_attention\.cli|[\w/]+\.py)(\s[^&;#]*|$)", line)
            if found and not line.startswith("pip "):
                yield page, [found[1], *shlex.split(found[2])]


COMMANDS = [pytest.param(words, id=f"{page.stem}: {' '.join(words)[:70]}") for page, words in list_commands()]
OURS = [param for param in COMMANDS if not param.values[0][0].endswith(".py")]
SCRIPTS = [param for param in COMMANDS if param.values[0][0].endswith(".py")]


@pytest.mark.parametrize("words", OURS)
def test_commands_have_these_options(words):
    command, rest = typer.main.get_command(app), [word for word in words[1:] if word != "--help"]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert command.make_context("elastic-attn", rest).params


@pytest.mark.parametrize("words", SCRIPTS)
def test_scripts_have_these_options(words):
    script = ROOT / words[0]
    text = read(script)
    for module in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE):
        beside = script.with_name(f"{module}.py")
        text += read(beside) if beside.is_file() else ""
    options = [word for word in words if word.startswith("--")]
    assert not [option for option in options if f'"{option}"' not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"https?:", target):
            continue
        name, _, place = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name} links to {target}"
        headings = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in find_headings(path)] if place else []
        assert not place or place in headings, f"{page.name} links to {target}"


def find_headings(path):
    return re.findall(r"^#+ (.*)$", BLOCK.sub("", read(path)), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"\b(?:benchmarks|tests)/[\w/]+\.py\b|\brecipes/[\w.-]+\.toml\b", read(page)))
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize(("page", "body"), list_blocks("python"), ids=lambda value: getattr(value, "stem", ""))
def test_blocks_import_what_there_is(page, body):
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and node.module != "vllm":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_pages_have_commands():
    assert len(OURS) >= 20 and len(SCRIPTS) >= 10 and len(list_blocks("python")) >= 8
