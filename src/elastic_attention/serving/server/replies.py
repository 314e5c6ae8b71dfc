"""The bodies of the replies, in OpenAI's form."""

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ..report import KEY
from .engine import AnswerFailed, Ending

MOST_SAID = 1000
"""Characters of a refusal; what a client sent is not sent back as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Builds the bodies of one reply.

    Attributes:
        is_chat: /v1/chat/completions rather than /v1/completions.
    """

    model: str
    is_chat: bool
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, text: str, ending: Ending) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": ending.reason}
        return self._frame("chat.completion", [choice]) | {"usage": self._usage(ending)} | self._facts(ending)

    async def stream(self, pieces: AsyncIterator[str | Ending], *, include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events: pieces of text, the end with its facts, the usage if wanted, and [DONE]."""
        if self.is_chat:
            yield self._event(self._delta({"role": "assistant", "content": ""}))
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield self._event(self._delta({"content": piece} if self.is_chat else piece))
                    continue
                yield self._event(self._delta({} if self.is_chat else "", reason=piece.reason) | self._facts(piece))
                if include_usage:
                    yield self._event(self._frame("chat.completion.chunk", []) | {"usage": self._usage(piece)})
        except AnswerFailed as error:  # the status was sent long ago, so the stream itself has to say it
            yield self._event(make_error(str(error), kind="server_error"))
        yield "data: [DONE]\n\n"

    def _delta(self, said: Any, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta" if self.is_chat else "text": said, "logprobs": None, "finish_reason": reason}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix, kind = ("chatcmpl", kind) if self.is_chat else ("cmpl", "text_completion")
        return {
            "id": f"{prefix}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _usage(self, ending: Ending) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": ending.new_tokens,
            "total_tokens": self.prompt_tokens + ending.new_tokens,
        }

    def _facts(self, ending: Ending) -> dict[str, Any]:
        """Where vLLM puts what its plugin reports, so that one client reads both."""
        return {"kv_transfer_params": {KEY: ending.report}}

    @staticmethod
    def _event(body: dict[str, Any]) -> str:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def make_error(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """The body of a refusal; a message that quotes half of a character is sent all the same."""
    shown = message if len(message) <= MOST_SAID else f"{message[:MOST_SAID]}…"
    message = shown.encode(errors="replace").decode()
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
