"""Tokens of a record: chat template with generation prompt, then the answer; and where each part lies."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from ...errors import DataError
from .record import TrainingRecord

_PROBE = "a text that stands for the user's"
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSample:
    """Tokens of one record.

    Attributes:
        tokens: (n,) uint32, prompt and response.
        context, question, response: [first, last + 1) of each part. The response begins where the prompt ends and runs
            to the end of the sample; a token belongs to the part in which its first character lies.
    """

    tokens: np.ndarray
    context: Span
    question: Span
    response: Span


class Encoder:
    """Turns records into tokens.

    The prompt is tokenised in one piece, as at inference, and the answer by itself, as a model would generate it. The
    end-of-turn token follows a whole answer, but neither an answer that `answer_prefix` has begun nor plain text.

    Args:
        tokenizer: a fast transformers tokenizer; it needs a chat template for chat records only.
        template: further variables of the chat template, such as {"enable_thinking": False}.

    Raises:
        DataError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, template: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{type(tokenizer).__name__} does not tell which characters a token covers; use a fast tokenizer."
            )
        self.tokenizer, self.template = tokenizer, dict(template or {})
        self._frame: tuple[str, str] | None = None

    def encode(self, record: TrainingRecord, where: str) -> EncodedSample:
        """Tokens and spans of a record; `where` opens error messages.

        Raises:
            DataError: there is no chat template, the template changes the user's text, or the answer has no token.
        """
        joint = "\n\n" if record.is_chat and record.context and record.question else ""
        user = record.context + joint + record.question
        prompt, (first, last), shift = self._render(user, where) if record.is_chat else (user, (0, len(user)), 0)
        prompt += record.answer_prefix
        coded = self.tokenizer(prompt, add_special_tokens=not record.is_chat, return_offsets_mapping=True)
        answer = list(self.tokenizer(record.answer, add_special_tokens=False)["input_ids"])
        if not answer:
            raise DataError(f"{where}: 'answer' {record.answer!r:.40} has no token; fill it in or remove the record.")
        if record.is_chat and not record.answer_prefix and self.tokenizer.eos_token_id is not None:
            answer.append(self.tokenizer.eos_token_id)
        # A token without characters, such as the begin-of-text token, belongs to no part unless others surround it.
        starts = np.array([start if end > start else -1 for start, end in coded["offset_mapping"]], dtype=np.int64)
        inner = shift + len(record.context)
        edges = np.clip([first, inner, inner + len(joint), last], first, last)
        a, b, c, d = (int(i) for i in np.searchsorted(np.maximum.accumulate(starts), edges))
        tokens = np.array([*coded["input_ids"], *answer], dtype=np.uint32)
        return EncodedSample(
            tokens=tokens, context=(a, b), question=(c, d), response=(len(tokens) - len(answer), len(tokens))
        )

    def fingerprint(self) -> str:
        """Checksum of everything in tokenizer and template that decides the tokens."""
        tokenizer = self.tokenizer
        parts = [
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.chat_template,
            json.dumps(self.template, sort_keys=True),
            tokenizer.eos_token_id,
            metadata.version("tokenizers"),
            metadata.version("transformers"),
        ]
        if tokenizer.chat_template:  # a template may look at more than its variables, the date for one
            parts.append(self._apply(_PROBE, "the chat template"))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _render(self, user: str, where: str) -> tuple[str, Span, int]:
        """The prompt, where the user's text lies in it, and where its character 0 would lie if none were stripped."""
        if self._frame is None:
            head, found, tail = self._apply(_PROBE, where).partition(_PROBE)
            if not found:
                raise DataError(f"{where}: the chat template drops the user's text; give the tokenizer another one.")
            self._frame = head, tail
        head, tail = self._frame
        prompt, first = self._apply(user, where), len(head)
        for kept in (user, user.strip()):
            if prompt == head + kept + tail:
                return prompt, (first, first + len(kept)), first - user.index(kept)
        raise DataError(
            f"{where}: the chat template changes the user's text; remove what it reacts to, or set "
            "metadata.is_chat = false."
        )

    def _apply(self, user: str, where: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False, **self.template
            )
        except Exception as error:  # templates are programs that raise what they like
            raise DataError(
                f"{where}: the chat template fails ({error}); give the tokenizer a template, or set "
                "metadata.is_chat = false."
            ) from error
