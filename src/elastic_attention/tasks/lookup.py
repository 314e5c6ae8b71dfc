"""Lookup: a table of keys and numbers in the middle of prose, or constants in the middle of code."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

NUM_ROWS = 4
NUM_CONSTANTS = 3
DIGITS = 5
# (title of the table, row, answer prefix)
WORDINGS = (
    ("Telephone list", "{key}: {value}", "\n\nFrom the telephone list:\n{key}:"),
    ("Table of prices", "{key} = {value}", "\n\nFrom the table of prices:\n{key} ="),
    ("Account balances", "{key} has {value}", "\n\nFrom the account balances:\n{key} has"),
)


def make_lookup(draw: Draw, kind: str, category: str) -> Sample:
    """A table in the middle of prose; the text ends with the key of one row."""
    title, row, prefix = draw.wording(*WORDINGS)
    keys, values = draw.keys(NUM_ROWS), draw.numbers(NUM_ROWS, DIGITS)
    rows = [row.format(key=k, value=v) for k, v in zip(keys, values, strict=True)]
    block = "\n\n" + "\n".join([title, *rows]) + "\n\n"
    asked = draw.rng.randrange(NUM_ROWS)
    prefix = prefix.format(key=keys[asked])
    passage = draw.prose(draw.room(block, prefix, is_chat=False))
    passage.scatter([block], draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question="",
        answer=f" {values[asked]}",
        answer_prefix=prefix,
        is_chat=False,
    )


def make_constants(draw: Draw, kind: str, category: str) -> Sample:
    """Constants set in the middle of code; the last line of the code asserts the value of one."""
    definition, use = draw.wording(
        ("{key} = {value}", "assert {key} =="), ("const {key} = {value};", "check({key} ===")
    )
    keys = [key.upper().replace("-", "_") for key in draw.keys(NUM_CONSTANTS)]
    values = draw.numbers(NUM_CONSTANTS, DIGITS)
    lines = ["\n" + definition.format(key=k, value=v) for k, v in zip(keys, values, strict=True)]
    ending = "\n\n" + use.format(key=keys[0])
    passage = draw.code(draw.room(ending, *lines, is_chat=False))
    passage.scatter(lines, draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question="",
        answer=f" {values[0]}",
        answer_prefix=ending,
        is_chat=False,
    )
