"""Every command and every Python block of the README runs, and its tables agree with the records."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elastic_attention.models import embedded
from elastic_attention.models.pretrained import list_pretrained
from elastic_attention.training.recipe import load_recipe
from elastic_attention.viz import update_tables
from elastic_attention.viz.tables import TABLES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(README.read_text(encoding="utf-8"))
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.strip().splitlines()]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
# A demo takes minutes and CI runs it whole; here its first prompt shows that the command is spelled right.
SHORTER = {"demo": ["--limit", "1"]}

needs_model = pytest.mark.skipif(
    not (embedded.is_complete(embedded.cache_root() / embedded.FOLDER_NAME) and list_pretrained()),
    reason="the embedded model is not here; `make demo` fetches it",
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def mark(item, words):
    """Give the parameter the marks of what it needs."""
    marks = [pytest.mark.model, needs_model] if any(word in item for word in words) else []
    marks += [pytest.mark.network] if item.startswith("pip ") else []
    marks += [needs_gpu] if "--device cuda" in item else []
    return pytest.param(item, marks=marks, id=item.splitlines()[-1][:60])


def run(command, folder):
    environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def skip_without_records():
    named = {TABLES[name].record for name in re.findall(r"<!-- table:([\w-]+) -->", README.read_text(encoding="utf-8"))}
    missing = sorted(record for record in named if not (ROOT / "results" / record).is_file())
    if missing:
        pytest.skip(f"results/ lacks {', '.join(missing)}")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that the README's commands read, with the command on the path."""
    for name in ("README.md", "DESIGN.md", "Makefile", "pyproject.toml", "constraints.txt", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("recipes", "results"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "src").symlink_to(ROOT / "src")
    command = tmp_path / "bin" / "elastic-attn"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom elastic_attention.cli import main\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("command", [mark(line, ("-attn demo", "-attn run", "-attn inspect")) for line in COMMANDS])
def test_command(command, checkout):
    program, *arguments = shlex.split(command)
    if program == "make":
        run(["make", "--dry-run", *arguments], checkout)
    elif program == "pip":
        run([sys.executable, "-m", "pip", *arguments, "--dry-run", "--no-deps"], checkout)
    elif arguments[0] == "train":
        assert run([program, "train", "--help"], checkout)
        assert load_recipe(checkout / arguments[1]).steps > 0
    elif arguments[0] == "report":
        skip_without_records()
        run([program, *arguments], checkout)
    else:
        run([program, *arguments, *SHORTER.get(arguments[0], [])], checkout)


@pytest.mark.parametrize("code", [mark(body, ("load_model",)) for body in PYTHON])
def test_python(code, checkout):
    printed = run([sys.executable, "-c", code], checkout)
    assert code != PYTHON[0] or "third stone" in printed


def test_blocks_are_shell_or_python():
    assert len(COMMANDS) >= 8 and len(PYTHON) >= 3
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    assert {shlex.split(line)[0] for line in COMMANDS} <= {"make", "pip", "elastic-attn"}


def test_first_example_is_short_and_prints_the_benefit():
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    assert lines[-1].startswith("print(") and "kv_bytes" in lines[-1]


def test_tables_are_up_to_date():
    skip_without_records()
    assert update_tables(README, ROOT / "results", check=True) == []
