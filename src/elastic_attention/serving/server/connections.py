"""Connections on which no request comes: uvicorn keeps them for as long as a client likes."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import MAX_BODY_SECONDS


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection where the head of a request is not there in time.

    A server takes so many connections and no more. Clients that connect and say nothing, or half a line, would hold
    all of them for good.

    Attributes:
        max_head_seconds: from the start of the connection, or the end of the reply before.
    """

    max_head_seconds = MAX_BODY_SECONDS
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client is gone."""
        super().connection_lost(exc)
        if self._giving_up is not None:
            self._giving_up.cancel()

    def on_response_complete(self) -> None:
        """The reply was sent; another request may follow."""
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = self.loop.call_later(self.max_head_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
