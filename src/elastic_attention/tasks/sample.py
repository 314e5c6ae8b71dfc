"""One sample, and its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from typing import Any, Protocol

# What the templates of Llama 3 write where nobody tells them the date.
TODAY = date(2024, 7, 26)
# Stands before a template, which then calls it in place of the clock; variables may be texts alone, no functions.
_CALENDAR = "".join(f"|replace('%{sign}', '{TODAY.strftime('%' + sign)}')" for sign in "YymBbdAajHIMSp")
_STOPPED_CLOCK = f"{{% macro strftime_now(format) %}}{{{{ format{_CALENDAR} }}}}{{% endmacro %}}\n"


class Tokenizer(Protocol):
    """What this package asks of a tokenizer; every transformers tokenizer with a chat template has it."""

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        """{"input_ids": list of ids} of a text, or a list of such lists for a list of texts."""

    def __hash__(self) -> int:
        """Token counts are kept per tokenizer."""

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool, tokenize: bool) -> Any:
        """The text of a conversation, up to where the assistant speaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A long prompt with a short answer.

    `category` is a column of the data ("sensitive" or "robust"). `answer` continues `answer_prefix`, with its
    leading space. Chat samples put context and question into the user's turn and `answer_prefix` at the start
    of the assistant's; plain samples (`is_chat` False) are context + question + answer_prefix as one text.
    """

    kind: str
    category: str
    context: str
    question: str
    answer: str
    answer_prefix: str
    is_chat: bool


def render(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The token ids (prompt_ids, answer_ids); the answer is right when greedy decoding yields `answer_ids`."""
    return list(encode_prompt(sample, tokenizer)), encode(sample.answer, tokenizer)


def to_row(sample: Sample) -> dict[str, Any]:
    """The sample as a training record; its kind is the record's `task`."""
    metadata = {"task": sample.kind, "is_chat": sample.is_chat, "answer_prefix": sample.answer_prefix}
    return {
        "context": sample.context,
        "question": sample.question,
        "answer": sample.answer,
        "category": sample.category,
        "metadata": metadata,
    }


# `generate` checks the length of what the caller then renders, so each prompt is tokenised once.
@lru_cache(maxsize=16)
def encode_prompt(sample: Sample, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt's token ids; plain text stands behind what the tokenizer puts in front of it, as in training.

    A tokenizer whose `chat_template` is None has plain text alone.
    """
    is_plain = not sample.is_chat or getattr(tokenizer, "chat_template", "") is None
    return tuple(tokenizer(prompt_text(sample, tokenizer), add_special_tokens=is_plain)["input_ids"])


def prompt_text(sample: Sample, tokenizer: Tokenizer) -> str:
    """The prompt as text, chat markers and answer prefix included."""
    if not sample.is_chat:
        return sample.context + sample.question + sample.answer_prefix
    return open_chat(tokenizer, f"{sample.context}\n\n{sample.question}") + sample.answer_prefix


def open_chat(tokenizer: Tokenizer, text: str) -> str:
    """A conversation in which the user says `text`, up to where the assistant speaks.

    Templates that write the date of today write `TODAY`: a prompt must not depend on the day on which it is made, or a
    run that goes on after midnight would ask its methods different prompts.
    """
    write: Callable[..., Any] = tokenizer.apply_chat_template
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and "strftime_now" in template:
        write = partial(write, chat_template=_STOPPED_CLOCK + template)
    return str(write([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False))


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text without special tokens added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
