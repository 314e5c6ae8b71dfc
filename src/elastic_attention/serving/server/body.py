"""Turning away bodies that are too large before they are in memory, and bodies that never end."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .replies import make_error


class BodyLimit:
    """ASGI middleware: status 413 for a body that is too large, announced or not, and 408 for one that is too slow."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_seconds: float, note_refusal: Callable[[], None] = lambda: None
    ) -> None:
        self._app, self._max_bytes, self._max_seconds = app, max_bytes, max_seconds
        self._note_refusal = note_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes, max_seconds = self._max_bytes, self._max_seconds
        too_large = (413, f"The body has more than {max_bytes} bytes; send less.")
        too_slow = (408, f"The body was not there after {max_seconds:g} seconds; send it faster.")
        deadline = asyncio.get_running_loop().time() + max_seconds
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > max_bytes:
            await _pour_away(receive, deadline)
            await self._refuse(send, *too_large)
            return
        received, is_whole = 0, False
        refusal: tuple[int, str] | None = None

        async def count() -> Message:
            nonlocal received, is_whole, refusal
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                refusal = too_slow
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            is_whole = is_whole or not message.get("more_body", False)
            if received > max_bytes:
                refusal = too_large
                return {"type": "http.disconnect"}
            return message

        async def hold(message: Message) -> None:
            if refusal is None:
                await send(message)

        try:
            await self._app(scope, count, hold)
        except Exception:
            if refusal is None:
                raise
        if refusal is not None:
            if not is_whole:
                await _pour_away(receive, deadline)
            await self._refuse(send, *refusal)

    async def _refuse(self, send: Send, status: int, message: str) -> None:
        self._note_refusal()
        body = json.dumps(make_error(message)).encode()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _pour_away(receive: Receive, deadline: float) -> None:
    """Take the rest of a body and keep nothing: clients read no reply before they have sent everything."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while (await receive()).get("more_body", False):
                pass
