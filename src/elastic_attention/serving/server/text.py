"""Tokens to text while they come: whole characters only, and nothing that may turn out to be a stop string."""

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"
WINDOW = 16
"""Tokens after which text is settled; between one and two windows are decoded for each token."""


class TextStream:
    """Text of one answer, piece by piece.

    Attributes:
        is_stopped: a stop string came; it and what follows is not part of the answer.
        tokens: the answer so far.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._told = 0
        # Text of the tokens before `_read`, and the tokens before them with which a window is decoded: what a token
        # says can depend on those in front of it. Characters of the window that are settled already.
        self._settled, self._start, self._read, self._overlap = "", 0, 0, 0
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
        """Text of all tokens, of which the last ones alone are decoded anew."""
        text = self._settled + self._decode_from(self._start)[self._overlap :]
        if len(self.tokens) - self._read >= WINDOW and not text.endswith(BROKEN):
            overlap = len(self._decode_from(self._read))
            if overlap:  # else the next token could be taken for the first one of all, which loses its space
                self._settled, self._start, self._read, self._overlap = text, self._read, len(self.tokens), overlap
        return text

    def _decode_from(self, start: int) -> str:
        tokens = self.tokens[start:]
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

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
