"""Texts cut into units (sentences or lines) with token counts, so that a haystack of a given length is a sum."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from elastic_attention.tasks.corpora import Document
from elastic_attention.tasks.sample import Tokenizer

MAX_SENTENCE_WORDS = 60
# Evidence stays outside a sink of 64 and a window of 512 tokens, with a block of 64 to spare on either side.
MARGIN_FIRST, MARGIN_LAST = 128, 640


@dataclass(slots=True)
class Passage:
    """Consecutive units and their token counts. A unit carries its own separator in front."""

    units: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All units in one string, without the first separator."""
        return "".join(self.units).lstrip()

    def middle(self) -> list[int]:
        """Indices of the units whose evidence neither sink nor window would show (at least one index)."""
        total, offset, inside = sum(self.counts), 0, []
        for index, count in enumerate(self.counts):
            if offset >= MARGIN_FIRST and offset + count <= total - MARGIN_LAST:
                inside.append(index)
            offset += count
        return inside or [len(self.counts) // 4]

    def scatter(self, items: Sequence[str], rng: random.Random) -> None:
        """Insert `items` (with their separators) in the middle, each at its own random depth."""
        middle = self.middle()
        places = rng.sample(middle, len(items)) if len(items) <= len(middle) else rng.choices(middle, k=len(items))
        for place, item in sorted(zip(places, items, strict=True), reverse=True):
            self.units.insert(place, item)
            self.counts.insert(place, 0)


def split_sentences(text: str) -> list[str]:
    """Sentences, each with a space in front; very long ones are cut."""
    units = []
    for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"])", text):
        words = sentence.split()
        for start in range(0, len(words), MAX_SENTENCE_WORDS):
            units.append(" " + " ".join(words[start : start + MAX_SENTENCE_WORDS]))
    return units


def split_lines(text: str) -> list[str]:
    """Lines, each with its newline in front, so that a tokenizer sees newline and indentation together."""
    return ["\n" + line.rstrip() for line in text.splitlines() if line.strip()]


@lru_cache(maxsize=1024)
def cut_document(document: Document, split: Callable[[str], list[str]], tokenizer: Tokenizer) -> Passage:
    """A whole document as a passage; kept, so that a text is tokenised once."""
    units = split(document.text)
    return Passage(units, [len(ids) for ids in tokenizer(units, add_special_tokens=False)["input_ids"]])


def draw_passage(
    rng: random.Random,
    documents: Sequence[Document],
    split: Callable[[str], list[str]],
    tokenizer: Tokenizer,
    num_tokens: int,
) -> Passage:
    """About `num_tokens` (never more) of consecutive text from a random place, going on in the next document."""
    which = rng.randrange(len(documents))
    source = cut_document(documents[which], split, tokenizer)
    start = rng.randrange(len(source.units))
    passage, left = Passage(), num_tokens
    while left > 0:
        for unit, count in zip(source.units[start:], source.counts[start:], strict=True):
            if count > left:
                words = unit.split(" ")
                shortened = " ".join(words[: int(len(words) * left / count)])
                passage.units.append(shortened)
                passage.counts.append(left)
                return passage
            passage.units.append(unit)
            passage.counts.append(count)
            left -= count
        which, start = (which + 1) % len(documents), 0
        source = cut_document(documents[which], split, tokenizer)
    return passage
