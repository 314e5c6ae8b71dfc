"""Copying: the start of a sentence from the middle of the text is given, its next words are wanted."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

# The question shows fewer words than the assistant's turn, or the model would copy the question's own ending.
NAMED_WORDS, CUE_WORDS, ANSWER_WORDS = 4, 12, 4
WORDINGS = (
    ("Read the following text carefully.", 'Quote the sentence that begins with "{start}" word for word.', "{cue}"),
    ("Here is a document.", 'How does the sentence starting "{start}" go on?', "The sentence is: {cue}"),
)


def make_copying(draw: Draw, kind: str, category: str) -> Sample:
    """A quotation of a sentence that stands once, in the middle."""
    intro, question, prefix = draw.wording(*WORDINGS)
    longest_cue = "extraordinary " * (NAMED_WORDS + CUE_WORDS)
    passage = draw.prose(draw.room(intro, question, prefix, longest_cue))
    sentences = [passage.units[i].split() for i in passage.middle()]
    num_words = CUE_WORDS + ANSWER_WORDS
    words = draw.rng.choice([words for words in sentences if len(words) > num_words] or sentences)
    return Sample(
        kind=kind,
        category=category,
        context=f"{intro}\n{passage.text}",
        question=question.format(start=" ".join(words[:NAMED_WORDS])),
        answer=" " + " ".join(words[CUE_WORDS:num_words]),
        answer_prefix=prefix.format(cue=" ".join(words[:CUE_WORDS])),
        is_chat=True,
    )
