"""The application: its commands, and what an error looks like."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import ElasticAttentionError
from .bench import bench
from .bench_serve import bench_serve
from .convert import convert
from .demo import demo
from .eval import evaluate
from .inspect import inspect
from .report import report
from .run import run
from .serve import serve
from .train import train

WRONG_INPUT = 2

app = typer.Typer(
    name="elastic-attn",
    help="Full or sparse attention, decided per prompt and per KV head, on frozen language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, run, inspect, train, convert, report, serve):
    app.command()(command)
app.command("eval")(evaluate)
benches = typer.Typer(invoke_without_command=True)
benches.callback()(bench)
benches.command("serve")(bench_serve)
app.add_typer(benches, name="bench")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"elastic-attn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process.

    Exit codes: 0 the job is done; 1 it ran and failed its own check; 2 wrong usage or input, with one line on stderr;
    130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # answers hold letters that not every terminal can show
            stream.reconfigure(errors="replace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="elastic-attn")
    except (ElasticAttentionError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
