"""Needles: a number hidden in prose, alone or among the numbers of other keys."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

DIGITS = 7
DIGITS_OF_MANY = 5
# One key: (introduction, needle, question, answer prefix), asked in a chat.
WORDINGS = (
    (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the number afterwards.",
        "The special magic number for {key} is {value}.",
        "What is the special magic number for {key} mentioned in the provided text?",
        "The special magic number for {key} is",
    ),
    (
        "Read the text and remember the codes in it.",
        "The access code of {key} is {value}.",
        "What is the access code of {key}?",
        "The access code of {key} is",
    ),
    (
        "The following document contains serial numbers. You will be asked for one.",
        "Note that {key} has the serial number {value}.",
        "Which serial number does {key} have according to the document?",
        "Note that {key} has the serial number",
    ),
)
# Several keys: (needle, answer prefix), as plain text that goes on with a note it held before. Small models tell
# keys apart best when the number follows its key at once and no question stands between.
WORDINGS_OF_MANY = (
    ("Note: {key} = {value}.", "\n\nNote: {key} ="),
    ("Record {key}: {value}.", "\n\nRecord {key}:"),
    ("(No. of {key}: {value})", "\n\n(No. of {key}:"),
)


def make_needle(draw: Draw, kind: str, category: str) -> Sample:
    """One needle at a random depth."""
    intro, needle, question, prefix = draw.wording(*WORDINGS)
    key, value = draw.keys(1)[0], draw.numbers(1, DIGITS)[0]
    sentence = " " + needle.format(key=key, value=value)
    question, prefix = question.format(key=key), prefix.format(key=key)
    passage = draw.prose(draw.room(intro, question, prefix, sentence))
    passage.scatter([sentence], draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=f"{intro}\n{passage.text}",
        question=question,
        answer=f" {value}",
        answer_prefix=prefix,
        is_chat=True,
    )


def make_needles(draw: Draw, kind: str, category: str, num_keys: int) -> Sample:
    """`num_keys` needles at random depths; the text ends where one of them is asked for."""
    needle, prefix = draw.wording(*WORDINGS_OF_MANY)
    keys, values = draw.keys(num_keys), draw.numbers(num_keys, DIGITS_OF_MANY)
    sentences = [" " + needle.format(key=k, value=v) for k, v in zip(keys, values, strict=True)]
    prefix = prefix.format(key=keys[0])
    passage = draw.prose(draw.room(prefix, *sentences, is_chat=False))
    passage.scatter(sentences, draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question="",
        answer=f" {values[0]}",
        answer_prefix=prefix,
        is_chat=False,
    )
