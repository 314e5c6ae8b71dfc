"""Continuation: the next words of prose, the next lines of code, the end of lines that repeat."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage
from elastic_attention.tasks.sample import Sample

ANSWER_TOKENS = 32
RECENT_LINES, REPEATED_LINES, MAX_REPEATED_TOKENS = 24, 3, 80


def make_prose(draw: Draw, kind: str, category: str) -> Sample:
    """Plain language modelling on prose."""
    passage = draw.prose(draw.room(is_chat=False) + 2 * ANSWER_TOKENS)
    words = passage.text.split(" ")
    num_words = int(len(words) * ANSWER_TOKENS / sum(passage.counts))
    return plain_sample(
        kind, category, " ".join(words[: -2 * num_words]), " " + " ".join(words[-2 * num_words : -num_words])
    )


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


def make_repeated_lines(draw: Draw, kind: str, category: str) -> Sample:
    """Code that repeats some of its last lines; the last word of these is wanted."""
    passage = draw.code(draw.room(is_chat=False) - MAX_REPEATED_TOKENS)
    lines, counts = passage.units[:-1], passage.counts[:-1]  # the very last line may be cut short
    starts = [
        i
        for i in range(max(0, len(lines) - RECENT_LINES), len(lines) - REPEATED_LINES)
        if sum(counts[i : i + REPEATED_LINES]) <= MAX_REPEATED_TOKENS
        and len(lines[i + REPEATED_LINES - 1].split()) >= 3
    ]
    first = draw.rng.choice(starts or [0])
    block, _, answer = "".join(lines[first : first + REPEATED_LINES]).rpartition(" ")
    return plain_sample(kind, category, "".join(lines).lstrip() + block, " " + answer)


def plain_sample(kind: str, category: str, context: str, answer: str) -> Sample:
    """A sample without chat markers or question."""
    return Sample(
        kind=kind,
        category=category,
        context=context,
        question="",
        answer=answer,
        answer_prefix="",
        is_chat=False,
    )
