"""Tokens of answers that mean nothing: labels that do not count, and what fills unused columns."""

from typing import Any

IGNORED = -100


def pad_token(tokenizer: Any) -> int:
    """A token id to fill unused columns with; its value never matters."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
