"""Aggregation: the word that a long list holds most often."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample, encode

NUM_WORDS = 6
SHARE_OF_FIRST = 0.5
WORDINGS = (
    ("Words: {words}", "\n\nMost frequent word:"),
    ("List: {words}.", "\n\nThe word that appears most often in the list is"),
    ("The votes in order: {words}.", "\n\nThe winner is"),
)


def make_most_frequent(draw: Draw, kind: str, category: str) -> Sample:
    """One word makes up half of the list, the others share the rest."""
    body, prefix = draw.wording(*WORDINGS)
    words = draw.nouns(NUM_WORDS)
    counts = {word: len(encode(f" {word}", draw.tokenizer)) for word in words}
    left, chosen = draw.room(body, prefix, is_chat=False), []
    while left >= max(counts.values()):
        word = words[0] if draw.rng.random() < SHARE_OF_FIRST else draw.rng.choice(words[1:])
        chosen.append(word)
        left -= counts[word]
    return Sample(
        kind=kind,
        category=category,
        context=body.format(words=" ".join(chosen)),
        question="",
        answer=f" {words[0]}",
        answer_prefix=prefix,
        is_chat=False,
    )
