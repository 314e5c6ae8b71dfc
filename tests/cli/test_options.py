"""The commands and their options are a promise: a change here is a change for users."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import typer

import elastic_attention
from elastic_attention.cli.app import app

OPTIONS = {
    "demo": "--decode --device --dtype --json --limit --report",
    "run": (
        "--backend --budget --compare --decode --device --dtype --json --max-new-tokens --model --prompt-file "
        "--question --routers"
    ),
    "inspect": "--budget --device --dtype --json --model --picture --prompt-file --question --routers",
    "bench": "--backend --device --dtype --json --model --quick --repeats --routers --tokens --what",
    "bench serve": "--concurrency --engine --json --model --new-tokens --requests --routers --seed --tokens --url",
    "eval": (
        "--backend --batch-tokens --budget --data --device --dtype --json --lengths --methods --model --option "
        "--output --routers --samples --seed --shard --suite --tasks --workers"
    ),
    "train": "--device --json --max-seconds --output recipe",
    "convert": "--base --json --msr --pattern destination source",
    "report": "--check --curves --frontier --head-map --html --json --log --recipe --results --speed --tables records",
    "serve": (
        "--allowed-host --budget --context --device --dtype --engine --first-chunk-tokens --host --json "
        "--max-body-bytes --max-new-tokens --max-requests --model --policy --port --routers --served-name --vllm-option"
    ),
}


def visible_options(command):
    names = set()
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        long = [name for name in parameter.opts if name.startswith("--")]
        names.update(long or [parameter.name])
    return " ".join(sorted(names))


def list_commands(group, prefix=""):
    """(name, command) of all commands, those under another one included."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from list_commands(command, f"{name} ")


def test_every_command_has_exactly_these_options():
    commands = list_commands(typer.main.get_command(app))
    assert {name: visible_options(command) for name, command in commands} == OPTIONS


def test_every_command_writes_records_and_says_what_it_does():
    for name, command in list_commands(typer.main.get_command(app)):
        assert "--json" in visible_options(command), name
        assert command.help, name
        assert all(p.help for p in command.params if not getattr(p, "hidden", False)), name


def test_version_and_help(call):
    assert call("--version") == (0, f"elastic-attn {elastic_attention.__version__}\n", "")
    code, out, _ = call("-h")
    assert code == 0 and all(name in out for name in OPTIONS if " " not in name)
    assert call("run", "--help")[0] == 0


def test_help_does_not_import_torch():
    program = (
        "import sys\nfrom elastic_attention.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_entry_point_exists():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["elastic-attn"].partition(":")
    assert callable(getattr(import_module(module), name))
