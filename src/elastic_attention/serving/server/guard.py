"""The small server's checks of names and bodies in front of vLLM's server, which takes middleware by its name alone."""

import json
import os
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from .body import BodyLimit
from .hosts import HostCheck, list_allowed_hosts
from .limits import MAX_BODY_BYTES, MAX_BODY_SECONDS

VARIABLE = "ELASTIC_ATTENTION_GUARD"


def prepare_guard(host: str, allowed_hosts: Iterable[str], max_body_bytes: int | None) -> str:
    """The name of the middleware, whose settings go to child processes by the environment.

    Args:
        allowed_hosts: see `list_allowed_hosts`.
        max_body_bytes: None = 8 MiB.
    """
    names = list_allowed_hosts(host, allowed_hosts)
    os.environ[VARIABLE] = json.dumps([names and sorted(names), max_body_bytes or MAX_BODY_BYTES])
    return f"{__name__}.{Guard.__name__}"


class Guard:
    """ASGI middleware: `BodyLimit` and `HostCheck`, as `prepare_guard` set them."""

    def __init__(self, app: ASGIApp) -> None:
        names, max_bytes = json.loads(os.environ[VARIABLE])
        self._app: ASGIApp = BodyLimit(app, max_bytes=max_bytes, max_seconds=MAX_BODY_SECONDS)
        if names is not None:
            self._app = HostCheck(self._app, frozenset(names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
