"""The commands of docs/evaluation.md exist with their options, and its Python blocks import what there is."""

import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from elastic_attention.cli.app import app
from elastic_attention.evaluation.plan import parse_method
from elastic_attention.tasks.suite import SUITES

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.splitlines() if "elastic-attn" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_options(command):
    words = shlex.split(command)
    name, *arguments = words[words.index("elastic-attn") + 1 :]
    context = typer.main.get_command(app).commands[name].make_context(name, arguments, resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("body", [body for kind, body in BLOCKS if kind == "python"])
def test_blocks_import_what_there_is(body):
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_page_names_what_there_is():
    assert all(f"`{name}`" in PAGE for name in SUITES)
    table = PAGE.split("| Word | Meaning |")[1].split("\n\n")[0]
    words = [word for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\S+)`", cell)]
    assert len(words) > 10
    for word in words:
        parse_method(word)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_the_harness_has_what_the_page_uses():
    import lm_eval.tasks

    assert callable(lm_eval.simple_evaluate) and lm_eval.tasks.TaskManager
