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
    # The middle of a short prompt may be one short sentence; some of it has to be left to say.
    num_cue = min(CUE_WORDS, max(1, len(words) - ANSWER_WORDS))
    start = draw.rng.randrange(max(1, len(words) - num_cue - ANSWER_WORDS))
    end = start + num_cue
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question=question,
        answer=" " + " ".join(words[end : end + ANSWER_WORDS]),
        answer_prefix=" ".join(words[start:end]),
        is_chat=False,
    )
