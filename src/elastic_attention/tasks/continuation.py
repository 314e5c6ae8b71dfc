"""Continuation: the next words of prose, the next lines of code, the rest of a line that was there before."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage
from elastic_attention.tasks.sample import Sample

ANSWER_TOKENS = 32
RECENT_LINES = 30


def make_prose(draw: Draw, kind: str, category: str) -> Sample:
    """Plain language modelling on prose."""
    passage = draw.prose(draw.room(is_chat=False) + 2 * ANSWER_TOKENS)
    words = passage.text.split(" ")
    num_words = int(len(words) * ANSWER_TOKENS / sum(passage.counts))
    return plain_sample(kind, category, " ".join(words[: -2 * num_words]), " " + " ".join(words[-2 * num_words : -num_words]))


def make_code(draw: Draw, kind: str, category: str) -> Sample:
    """Plain language modelling on code, by whole lines."""
    passage = draw.code(draw.room(is_chat=False) + ANSWER_TOKENS)
    last = len(passage.units) - 1  # the very last line may be cut short
    first, held = last, 0
    while held < ANSWER_TOKENS and first > 1:
        first -= 1
        held += passage.counts[first]
    context = Passage(passage.units[:first], passage.counts[:first])
    return plain_sample(kind, category, context.text, "".join(passage.units[first:last]))


def make_repeated_line(draw: Draw, kind: str, category: str) -> Sample:
    """Code that starts to repeat one of its last lines; the last word of that line is wanted."""
    passage = draw.code(draw.room(is_chat=False))
    lines = passage.units[:-1]  # the very last line may be cut short
    repeatable = [line.rsplit(" ", 1) for line in lines[-RECENT_LINES:] if len(line.split()) >= 3]
    line, answer = draw.rng.choice(repeatable or [[lines[0], "pass"]])
    return plain_sample(kind, category, "".join(lines).lstrip() + line, " " + answer)


def plain_sample(kind: str, category: str, context: str, answer: str) -> Sample:
    """A sample without chat markers or question."""
    return Sample(
        kind=kind, category=category, context=context, question="", answer=answer, answer_prefix="", is_chat=False
    )
