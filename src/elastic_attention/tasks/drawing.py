"""What a kind draws from: random choices, texts of its split, and how many tokens are left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from elastic_attention.tasks.corpora import Corpora, Country, Document
from elastic_attention.tasks.passages import Passage, draw_passage, split_lines, split_sentences
from elastic_attention.tasks.sample import Tokenizer, encode, open_chat
from elastic_attention.tasks.vocabulary import ADJECTIVES, NOUNS

T = TypeVar("T")
SPLITS = ("train", "heldout", "heldout_format")
# Every fourth text, country and word is held out.
HELDOUT_STEP = 4
# Tokens kept free for what the sum of parts does not see: joins, line breaks between the parts.
SLACK_TOKENS = 8


def take_split(items: Sequence[T], is_heldout: bool) -> list[T]:
    """Every fourth item for the held-out splits, all others for training; the two are disjoint."""
    return [item for i, item in enumerate(items) if (i % HELDOUT_STEP == HELDOUT_STEP - 1) == is_heldout]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The source of one sample. `num_tokens` is the budget of the whole prompt."""

    rng: random.Random
    split: str
    corpora: Corpora
    tokenizer: Tokenizer
    num_tokens: int

    @property
    def is_heldout(self) -> bool:
        """Whether texts and words come from the held-out part."""
        return self.split != "train"

    def wording(self, *options: T) -> T:
        """One of the wordings; the last one is never used but in the split "heldout_format"."""
        return options[-1] if self.split == "heldout_format" else self.rng.choice(options[:-1])

    def room(self, *fixed: str, is_chat: bool = True) -> int:
        """Tokens left for the haystack when the texts in `fixed` (and the chat markers) are in the prompt."""
        used = sum(len(encode(text, self.tokenizer)) for text in fixed if text)
        if is_chat:
            used += len(encode(open_chat(self.tokenizer, ""), self.tokenizer))
        return max(self.num_tokens - used - SLACK_TOKENS, 1)

    def prose(self, num_tokens: int) -> Passage:
        """Sentences of consecutive prose."""
        return draw_passage(self.rng, self.documents(self.corpora.prose), split_sentences, self.tokenizer, num_tokens)

    def code(self, num_tokens: int) -> Passage:
        """Lines of consecutive code."""
        return draw_passage(self.rng, self.documents(self.corpora.code), split_lines, self.tokenizer, num_tokens)

    def documents(self, documents: tuple[Document, ...]) -> list[Document]:
        """The documents of this split."""
        return take_split(documents, self.is_heldout)

    def countries(self, field: str | None = None) -> list[Country]:
        """The countries of this split (those that have `field`, if given)."""
        chosen = take_split(self.corpora.countries, self.is_heldout)
        return [country for country in chosen if field is None or field in country.facts]

    def nouns(self, count: int) -> list[str]:
        """Different nouns of this split."""
        return self.rng.sample(take_split(NOUNS, self.is_heldout), count)

    def keys(self, count: int) -> list[str]:
        """Different keys "adjective-noun"; no two share a word."""
        adjectives = self.rng.sample(take_split(ADJECTIVES, self.is_heldout), count)
        return [f"{a}-{n}" for a, n in zip(adjectives, self.nouns(count), strict=True)]

    def numbers(self, count: int, digits: int) -> list[str]:
        """Different numbers of `digits` digits: even ones in training, odd ones held out."""
        low, high = 10 ** (digits - 1) // 2, 10**digits // 2
        return [str(2 * n + self.is_heldout) for n in self.rng.sample(range(low, high), count)]
