"""Turning away bodies that are too large before they are in memory."""

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .replies import make_error


class BodyLimit:
    """ASGI middleware: status 413 for a body of more than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refuse(send)
            return
        received, is_refused = 0, False

        async def count() -> Message:
            nonlocal received, is_refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                is_refused = True
                return {"type": "http.disconnect"}
            return message

        async def hold(message: Message) -> None:
            if not is_refused:
                await send(message)

        try:
            await self._app(scope, count, hold)
        except Exception:
            if not is_refused:
                raise
        if is_refused:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = json.dumps(make_error(f"The body has more than {self._max_bytes} bytes; send less.")).encode()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
