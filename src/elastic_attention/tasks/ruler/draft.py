"""A sample before its size is settled: the text for any number of units of haystack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elastic_attention.tasks.lengths import TooShort


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A sample whose haystack can still grow.

    Attributes:
        write: number of units (words, sentences, documents) -> the user's text. Pure: the same number gives the same
            text, and needles, keys and questions do not depend on it.
        answer_prefix: how the answer begins.
        answers: the references.
        smallest: fewest units that hold what is asked for.
    """

    write: Callable[[int], str]
    answer_prefix: str
    answers: tuple[str, ...]
    smallest: int = 1


def find_size(count_tokens: Callable[[int], int], *, smallest: int, limit: int) -> int:
    """The number of units n with count_tokens(n) <= limit < count_tokens(n + 1), from `smallest` on.

    A search between a size that fits and one that does not. It guesses by the tokens a unit takes; guesses that keep
    falling on one side go further and further, until one falls on the other. Where units differ in size there may be
    several such n; it always finds the same one.

    Raises:
        TooShort: the smallest size does not fit.
    """
    low, low_tokens = smallest, count_tokens(smallest)
    if low_tokens > limit:
        raise TooShort(f"The shortest text has {low_tokens:,} tokens, more than there is room for.", low_tokens - limit)
    high, high_tokens = 2 * smallest + 64, count_tokens(2 * smallest + 64)
    while high_tokens <= limit:
        step = (limit - low_tokens) * (high - low) // max(high_tokens - low_tokens, 1)
        guess = max(high + 1, min(low + step + 1, 16 * high))
        low, low_tokens, high, high_tokens = high, high_tokens, guess, count_tokens(guess)
    step, was_low = 1, None
    while high - low > 1:
        guess = low + (limit - low_tokens) * (high - low) // (high_tokens - low_tokens)
        if was_low is not None:
            guess = max(guess, low + step) if was_low else min(guess, high - step)
        guess = min(max(guess, low + 1), high - 1)
        tokens = count_tokens(guess)
        is_low = tokens <= limit
        if is_low:
            low, low_tokens = guess, tokens
        else:
            high, high_tokens = guess, tokens
        step, was_low = 4 * step if is_low == was_low else 1, is_low
    return low
