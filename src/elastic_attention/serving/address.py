"""Where a server listens."""

import socket

from ..errors import ElasticAttentionError


def find_free_port() -> int:
    """A port of this computer that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_address(host: str, port: int) -> None:
    """Look before a model is loaded whether a server can listen there.

    Raises:
        ElasticAttentionError: it cannot, because the port is taken or the host is none of this computer.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # behind it Python repeats the address
        raise ElasticAttentionError(
            f"Cannot listen on {host}, port {port}: {reason}. Choose another --port or --host."
        ) from error
