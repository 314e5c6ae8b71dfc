"""Copying: a passage from the middle of the text is begun again, its next words are wanted."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

# The cue is long, because a short one leaves small models to their own prose.
CUE_WORDS, ANSWER_WORDS = 28, 3
WORDINGS = (
    "\n\nOnce again, word for word:\n",
    "\n\nQuotation from the text above:\n",
    "\n\nAs the author says:\n",
)


def make_copying(draw: Draw, kind: str, category: str) -> Sample:
    """A quotation of a passage that stands once, in the middle."""
    question = draw.wording(*WORDINGS)
    passage = draw.prose(draw.room(question, "extraordinary " * CUE_WORDS, is_chat=False))
    middle = passage.middle()
    words = " ".join("".join(passage.units[i] for i in middle).split()).split(" ")
    num_words = CUE_WORDS + ANSWER_WORDS
    start = draw.rng.randrange(max(1, len(words) - num_words))
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question=question,
        answer=" " + " ".join(words[start + CUE_WORDS : start + num_words]),
        answer_prefix=" ".join(words[start : start + CUE_WORDS]),
        is_chat=False,
    )
