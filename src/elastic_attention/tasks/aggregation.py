"""Aggregation: the word that a short list holds most often, after many solved lists."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample, encode

# How often the first, second and third word stand in a list.
TIMES = (4, 1, 1)
WORDINGS = (
    ("List: {words}\nMost frequent:", "\n\n"),
    ("{words} ->", "\n"),
    ("Votes: {words}. Winner:", "\n"),
)


def make_most_frequent(draw: Draw, kind: str, category: str) -> Sample:
    """Solved lists until the prompt is full, then one without its answer."""
    body, gap = draw.wording(*WORDINGS)
    last, answer = make_list(draw, body)
    left, solved = draw.room(last, is_chat=False), []
    while True:
        text, word = make_list(draw, body)
        line = f"{text} {word}{gap}"
        left -= len(encode(line, draw.tokenizer))
        if left < 0:
            break
        solved.append(line)
    return Sample(
        kind=kind,
        category=category,
        context="".join(solved),
        question="",
        answer=f" {answer}",
        answer_prefix=last,
        is_chat=False,
    )


def make_list(draw: Draw, body: str) -> tuple[str, str]:
    """A shuffled list in its wording, and its most frequent word."""
    words = draw.nouns(len(TIMES))
    listed = [word for word, times in zip(words, TIMES, strict=True) for _ in range(times)]
    draw.rng.shuffle(listed)
    return body.format(words=" ".join(listed)), words[0]
