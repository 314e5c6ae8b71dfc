"""Tokens to text while they come: whole characters only, and nothing that may turn out to be a stop string."""

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"


class TextStream:
    """Text of one answer, piece by piece.

    Attributes:
        is_stopped: a stop string came; it and what follows is not part of the answer.
        tokens: the answer so far.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._told = 0
        self.is_stopped = False
        self.tokens: list[int] = []

    def add(self, token: int) -> str:
        """Text that is certain after one more token; may be empty."""
        self.tokens.append(token)
        return self._tell(self._decode(), is_last=False)

    def finish(self) -> str:
        """The rest."""
        return "" if self.is_stopped else self._tell(self._decode(), is_last=True)

    def _decode(self) -> str:
        return self._tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _tell(self, text: str, *, is_last: bool) -> str:
        found = [place for stop in self._stops if (place := text.find(stop, max(0, self._told - len(stop)))) >= 0]
        if found:
            self.is_stopped = True
            end = max(self._told, min(found))
        elif is_last:
            end = len(text)
        else:
            end = len(text.rstrip(BROKEN)) - self._count_held(text)
        piece = text[self._told : end]
        self._told = max(self._told, end)
        return piece

    def _count_held(self, text: str) -> int:
        """Characters at the end that may be the start of a stop string."""
        text = text.rstrip(BROKEN)
        starts = (n for stop in self._stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(starts, default=0)
