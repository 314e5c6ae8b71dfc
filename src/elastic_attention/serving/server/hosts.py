"""Names under which a server may be asked for.

A web page can let its own name point at 127.0.0.1 and then talk to what listens there as if it were its own server (DNS
rebinding). Its requests still carry its name in the Host header, which is how they are told from the user's.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .replies import make_error

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ANY = "*"
_HOST = re.compile(r"(?:\[([^\s\[\]@/]+)\]|([^\s\[\]:@/?#\\]+))(?::[0-9]*)?")


def list_allowed_hosts(host: str, given: Iterable[str]) -> frozenset[str] | None:
    """Names that a server on `host` answers to; None = all of them.

    On this computer alone these are its own names, and `given` adds others. A server that is open to a network cannot
    know its names, so it checks them only where some are `given`. "*" is every name.
    """
    names = frozenset(_parse_name(name) or name.lower() for name in given)
    if ANY in names or not (names or _is_loopback(host)):
        return None
    return names | LOOPBACK | {host.lower()}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class HostCheck:
    """ASGI middleware: status 403 for a request under a name that is not the server's."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str], note_refusal: Callable[[], None] = lambda: None) -> None:
        self._app, self._allowed, self._note_refusal = app, allowed, note_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _read_name(scope) if scope["type"] in ("http", "websocket") else None
        if scope["type"] == "lifespan" or name in self._allowed:
            await self._app(scope, receive, send)
            return
        self._note_refusal()
        message = f"This server is not asked for as {name!r}; start it with --allowed-host {name or 'NAME'} if it is."
        await JSONResponse(make_error(message), 403)(scope, receive, send)


def _read_name(scope: Scope) -> str | None:
    """The name in the Host header, None where it is malformed; without one, as in HTTP/1.0, the server's address."""
    given = [value for key, value in scope["headers"] if key == b"host"]
    if not given:
        return str(scope["server"][0]) if scope.get("server") else None
    # Not by Starlette's URL: it takes the server's own address where the header is malformed.
    return _parse_name(given[0].decode("latin-1")) if len(given) == 1 else None


def _parse_name(host: str) -> str | None:
    """The name of `host` without its port and brackets, None where it is malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None
