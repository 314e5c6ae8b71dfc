"""vLLM's server with the plugin's flag, in a process of its own."""

import importlib.metadata
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ElasticAttentionError
from ..policy import ServingConfig
from ..report import KEY


def build_flags(serving: Mapping[str, Any], flags: Mapping[str, Any], options: Sequence[str]) -> list[str]:
    """The arguments of vLLM's server behind the model.

    Args:
        serving: keys of `ServingConfig`.
        flags: names of vLLM's flags without dashes in front, and values; None leaves one out.
        options: more flags as NAME=VALUE, or NAME for a switch.

    Raises:
        ElasticAttentionError: a setting is wrong, or an option has no name.
    """
    try:
        ServingConfig.read(dict(serving))
    except ValueError as error:
        raise ElasticAttentionError(str(error)) from error
    found = ["--additional-config", json.dumps({KEY: dict(serving)})]
    for flag, value in flags.items():
        found += [] if value is None else [f"--{flag}", str(value)]
    for option in options:
        name, has_value, text = option.lstrip("-").partition("=")
        if not name:
            raise ElasticAttentionError(f"--vllm-option {option!r} names no flag; write name=value.")
        found += [f"--{name}", text] if has_value else [f"--{name}"]
    return found


def run_vllm(model: str, arguments: Sequence[str]) -> int:
    """Run vLLM's server until it ends; its exit code. A SIGINT reaches it as well, and is waited for.

    Args:
        model: folder or hub id.
        arguments: see `build_flags`.
    """
    try:
        importlib.metadata.version("vllm")
        command = ["vllm.entrypoints.cli.main", "serve", model]
    except importlib.metadata.PackageNotFoundError:  # builds for CPUs go by another name, which that command trips over
        command = ["vllm.entrypoints.openai.api_server", "--model", model]
    command = [sys.executable, "-m", *command, *arguments]
    with subprocess.Popen(command) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
