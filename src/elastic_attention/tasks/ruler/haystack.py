"""Essays as a haystack: cut at words, split into sentences, repeated when they are too short."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.json_text import read_json

ESSAYS = "PaulGrahamEssays.json"
SUBSTITUTE = "held-out presidential addresses for Paul Graham's essays"


@dataclass(slots=True)
class Haystack:
    """The words of a text, and behind which of them a sentence ends."""

    words: tuple[str, ...]
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The text goes round, so its last word is followed by its first.
        following = (*self.words[1:], self.words[0])
        self.ends = [i + 1 for i, word in enumerate(self.words) if is_sentence_end(word, following[i])]

    def take_sentences(self, num_words: int) -> list[str]:
        """The first words as sentences, from the start again where the text ends; the last one may be cut short."""
        cuts = [0]
        for first in range(0, num_words, len(self.words)):
            stop = bisect_right(self.ends, num_words - first)
            cuts += [first + end for end in self.ends[:stop]]
        if cuts[-1] < num_words:
            cuts.append(num_words)
        total = len(self.words)
        return [" ".join(self.words[i % total] for i in range(a, b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def is_sentence_end(word: str, following: str) -> bool:
    """Does a sentence end between these words? A rule instead of a trained model: a stop, then no small letter."""
    return bool(re.search(r"[.!?][\"')\]]*$", word)) and not following[:1].islower()


@lru_cache(maxsize=4)
def load_haystack(data: Path | None, corpora: str | None) -> Haystack:
    """The essays of `data` where they are, else the substitute out of the corpora.

    Raises:
        DataError: the file is malformed.
        DownloadError: as `load_corpora` does.
    """
    if has_essays(data):
        assert data is not None
        text = read_essays(data / ESSAYS)
    else:
        text = " ".join(document.text for document in take_split(load_corpora(corpora).prose, is_heldout=True))
    return Haystack(tuple(text.split()))


def has_essays(data: Path | None) -> bool:
    """Are the original essays there?"""
    return data is not None and (data / ESSAYS).is_file()


def read_essays(path: Path) -> str:
    """The text of the original file. Raises DataError when it is malformed."""
    try:
        text = read_json(path)["text"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no essay file ({error!r:.120}); it must be {{'text': ...}} as RULER's own download writes it."
        ) from error
    if not isinstance(text, str) or len(text.split()) < 100:
        raise DataError(f"{path} holds no essays: 'text' must be a string of 100 words or more. Download it again.")
    return text
