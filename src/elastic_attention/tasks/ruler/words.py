"""The English words that RULER draws from: those of the package wonderwords, as in the original."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from elastic_attention.errors import DataError
from elastic_attention.tasks.packages import sha256_of

LISTS = {"noun": "nounlist.txt", "adjective": "adjectivelist.txt", "verb": "verblist.txt"}


@lru_cache(maxsize=1)
def read_words() -> dict[str, tuple[str, ...]]:
    """ "noun", "adjective" and "verb" -> words in the order of their file.

    Raises:
        DataError: the package is not installed; says how to get it.
    """
    folder = find_lists()
    return {
        kind: tuple(line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.strip())
        for kind, name in LISTS.items()
    }


def find_lists() -> Path:
    """The folder of the lists. Raises DataError as `read_words` does."""
    spec = find_spec("wonderwords")
    if spec is None or spec.origin is None:
        raise DataError("RULER draws its words from the package wonderwords; pip install 'elastic-attention[eval]'.")
    return Path(spec.origin).parent / "assets"


def digest_words() -> str:
    """Checksums of the lists, because releases of the package differ."""
    return " ".join(sha256_of(find_lists() / name)[:12] for name in LISTS.values())


@lru_cache(maxsize=1)
def list_all_words() -> tuple[str, ...]:
    """Nouns, adjectives and verbs, each once, sorted."""
    return tuple(sorted({word for words in read_words().values() for word in words}))


def draw_word(rng: random.Random) -> str:
    """A key "adjective-noun"."""
    words = read_words()
    return f"{rng.choice(words['adjective'])}-{rng.choice(words['noun'])}"


def shuffle_words(rng: random.Random) -> Iterator[str]:
    """Different words in random order, without an end: pairs "adjective-noun" go on where single words run out."""
    single = list_all_words()
    yield from rng.sample(single, len(single))
    seen: set[str] = set()
    while True:
        pair = draw_word(rng)
        if pair not in seen:
            seen.add(pair)
            yield pair
