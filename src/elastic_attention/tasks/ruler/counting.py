"""Words by how often they stand in the text: the common ones of a list, and the most frequent of a coded text."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from elastic_attention.tasks.ruler.draft import Draft
from elastic_attention.tasks.ruler.templates import COMMON_WORDS, FREQUENT_WORDS
from elastic_attention.tasks.ruler.words import shuffle_words

SHORT_LENGTH = 4096
TOKENS_PER_CODED_WORD = 50  # of the whole length: how many different words there are


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonKnobs:
    """`num_common` words stand `common` times each in the list, all others `uncommon` times."""

    common: int = 30
    uncommon: int = 3
    num_common: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequentKnobs:
    """Coded words of `letters` letters; word k comes up in proportion to k ** -alpha."""

    alpha: float = 2.0
    letters: int = 6


def draft_common(knobs: CommonKnobs, rng: random.Random, length: int) -> Draft:
    """A draft behind one solved example; its units are different words. Below 4,096 tokens the lists are thinner."""
    is_short = length < SHORT_LENGTH
    times = (6, 1) if is_short else (knobs.common, knobs.uncommon)
    example_size, example_times = (20, (3, 1)) if is_short else (40, (10, 3))
    order_seed, example_seed = rng.random(), rng.random()
    example, example_words = list_words(
        list(islice(shuffle_words(rng), example_size)), knobs.num_common, example_times, random.Random(example_seed)
    )
    numbered = " ".join(f"{i}. {word}" for i, word in enumerate(example_words, 1))
    solved = f"{COMMON_WORDS.text.format(context=example)}{COMMON_WORDS.answer_prefix} {numbered}"
    more = shuffle_words(rng)
    words = list(islice(more, knobs.num_common))

    def write(num_units: int) -> str:
        words.extend(islice(more, max(num_units - len(words), 0)))
        context, _ = list_words(words[:num_units], knobs.num_common, times, random.Random(order_seed))
        return f"{solved}\n{COMMON_WORDS.text.format(context=context)}"

    return Draft(
        write=write,
        answer_prefix=COMMON_WORDS.answer_prefix,
        answers=tuple(words[: knobs.num_common]),
        smallest=knobs.num_common,
    )


def list_words(words: list[str], num_common: int, times: tuple[int, int], rng: random.Random) -> tuple[str, list[str]]:
    """A numbered list in random order, and its common words."""
    common, uncommon = words[:num_common], words[num_common:]
    listed = common * times[0] + uncommon * times[1]
    rng.shuffle(listed)
    return " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1)), common


def draft_frequent(knobs: FrequentKnobs, rng: random.Random, length: int) -> Draft:
    """A draft; its units are drawn words. The most frequent word is a row of dots, which nobody is asked for."""
    vocabulary_size = max((length - FREQUENT_WORDS.max_new_tokens) // TOKENS_PER_CODED_WORD, 4)
    coded: dict[str, None] = {}
    while len(coded) < vocabulary_size:
        coded["".join(rng.choices(string.ascii_lowercase, k=knobs.letters))] = None
    vocabulary = ["...", *list(coded)[1:]]
    shares = [rank**-knobs.alpha / zeta(knobs.alpha) for rank in range(1, vocabulary_size + 1)]
    order_seed = rng.random()

    def write(num_units: int) -> str:
        drawn = [word for word, share in zip(vocabulary, shares, strict=True) for _ in range(int(num_units * share))]
        random.Random(order_seed).shuffle(drawn)
        return FREQUENT_WORDS.text.format(context=" ".join(drawn))

    # The fourth word must come up, and the three before it more often.
    smallest = next(n for n in range(16, 10_000) if int(n * shares[3]) >= 1 and int(n * shares[2]) > int(n * shares[3]))
    return Draft(
        write=write, answer_prefix=FREQUENT_WORDS.answer_prefix, answers=tuple(vocabulary[1:4]), smallest=smallest
    )


@lru_cache(maxsize=8)
def zeta(alpha: float) -> float:
    """Riemann's zeta function for alpha > 1: a sum, and Euler and Maclaurin's terms for its tail."""
    if alpha <= 1:
        raise ValueError(f"alpha={alpha} must be above 1, or the frequencies have no sum.")
    n = 1000
    tail = n ** (1 - alpha) / (alpha - 1) - 0.5 * n**-alpha + alpha * n ** (-alpha - 1) / 12
    return sum(k**-alpha for k in range(1, n + 1)) + tail
