"""Prompts that fit: what is too long loses its middle, before the chat template goes around it."""

from __future__ import annotations

from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.lengths import describe_least
from elastic_attention.tasks.suite import render_prompt

LEAST_TOKENS = 16


def fit_prompt(
    text: str,
    tokenizer: Any,
    *,
    task: str,
    length: int,
    max_new_tokens: int,
    is_chat: bool,
    max_prompt_tokens: int | None = None,
    is_joined: bool = False,
) -> tuple[str, list[int]]:
    """The prompt as the model reads it, and its tokens.

    Args:
        tokenizer: as in `render_prompt`; with a `decode` as transformers tokenizers have.
        task: for the message.
        length: most tokens of prompt and answer together.
        max_prompt_tokens: most tokens of `text` alone, as in the official code; None = as many as fit.
        is_joined: how the two ends are put together, as in `cut_middle`.

    Raises:
        DataError: `length` leaves no room for a prompt.
    """
    room = length - max_new_tokens
    room = room if max_prompt_tokens is None else min(room, max_prompt_tokens)
    while room >= LEAST_TOKENS:
        prompt, ids = render_prompt(tokenizer, cut_middle(text, room, tokenizer, is_joined=is_joined), is_chat=is_chat)
        excess = len(ids) + max_new_tokens - length
        if excess <= 0:
            return prompt, ids
        room = min(room, len(ids)) - excess  # markers of the template, and ends that need more tokens when cut
    shortest = cut_middle(text, LEAST_TOKENS, tokenizer, is_joined=is_joined)
    least = len(render_prompt(tokenizer, shortest, is_chat=is_chat)[1]) + max_new_tokens
    raise DataError(f"{describe_least(task, length, max(least, length + 1))}.")


def cut_middle(text: str, max_tokens: int, tokenizer: Any, *, is_joined: bool = False) -> str:
    """A text without its middle, if it has more than `max_tokens` tokens, special ones included.

    LongBench decodes the two ends apart and drops one token of an odd number. LongBench-v2 decodes them as one
    (`is_joined`) and keeps it.
    """
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    if len(ids) <= max_tokens:
        return text
    half = max_tokens // 2
    if is_joined:
        return str(tokenizer.decode(ids[:half] + ids[half - max_tokens :], skip_special_tokens=True))
    ends = ids[:half], ids[-half:]
    return "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends)
