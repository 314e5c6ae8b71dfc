"""A server in a process of its own, for as long as it is needed."""

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import ElasticAttentionError
from .address import find_free_port


@contextmanager
def open_server(flags: Sequence[str], *, patience: float = 600.0) -> Iterator[str]:
    """Start `elastic-attn serve` with these flags on a free port of this computer.

    Args:
        patience: seconds until it must answer.

    Yields:
        Its address, http://127.0.0.1:port.

    Raises:
        ElasticAttentionError: it ends or does not answer; with the end of what it said.
    """
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    program = "from elastic_attention.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            stop = time.monotonic() + patience
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > stop:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()[-3:]
                    raise ElasticAttentionError(f"The server did not start: {' '.join(said)}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
