"""Haystacks that sensitive and robust kinds share, so that what a prompt looks like says nothing about what it asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from elastic_attention.tasks.drawing import Draw, take_split
from elastic_attention.tasks.passages import Passage, split_lines
from elastic_attention.tasks.sample import encode
from elastic_attention.tasks.vocabulary import ADJECTIVES, NOUNS

MIN_PROFILE_CHARS = 4_000
NUM_SENTENCES, NUM_REPEATED, NUM_CODE_TOKENS = 16, (2, 6), 240
# The end of a short sentence "The ADJECTIVE NOUN ...", in other words than the lines of `tasks.everyday`.
ENDINGS = (
    """
is for sale|stands in a corner|came by post|has no owner|needs some paint|looks new|was a present|costs too much
belongs here|fell down twice|is older than it looks|cannot be moved|hangs on a nail|will do for now|is hard to draw
went missing in May|is heavier than lead|smells of smoke|has seen better days|turned up again|is not what it was
has a crack|was never used|is the last of its kind|shines at night|gathers dust|is made by hand|must be returned
""".strip()
    .replace("\n", "|")
    .split("|")
)
TABLES = ("{noun}, {adjective}, {number}", "| {noun} | {adjective} | {number} |", "{number}\t{adjective} {noun}")
COMMENT = re.compile(r"^\s*#+ (.{12,})$", re.MULTILINE)


def draw_profile(draw: Draw, num_tokens: int) -> Passage:
    """Shuffled lines of one country's profile, over and over."""
    profiles = [country.profile for country in draw.countries() if len(country.profile) >= MIN_PROFILE_CHARS]
    return fill(draw, shuffle_rounds(draw, split_lines(draw.rng.choice(profiles))), num_tokens)


def draw_table(draw: Draw, num_tokens: int) -> Passage:
    """Rows of words and numbers."""
    form, nouns, adjectives = draw.rng.choice(TABLES), *list_words(draw)

    def rows() -> Iterator[str]:
        while True:
            noun, adjective = draw.rng.choice(nouns), draw.rng.choice(adjectives)
            yield "\n" + form.format(noun=noun, adjective=adjective, number=draw.rng.randint(100, 99_999))

    return fill(draw, rows(), num_tokens)


def draw_sentences(draw: Draw, num_tokens: int) -> Passage:
    """A few short sentences in ever new order, a line each."""
    return fill(draw, shuffle_rounds(draw, short_sentences(draw, NUM_SENTENCES)), num_tokens)


def draw_repeated(draw: Draw, num_tokens: int) -> Passage:
    """A few lines over and over in the same order: short sentences, or lines of code."""
    count = draw.rng.randint(*NUM_REPEATED)
    lines = draw.code(NUM_CODE_TOKENS).units[:-1][:count] if draw.rng.random() < 0.5 else []
    return fill(draw, go_round(lines or short_sentences(draw, count)), num_tokens)


def draw_comments(draw: Draw, num_tokens: int) -> Passage:
    """Comments in code, without the code; for validation alone."""
    comments = [c for document in draw.documents(draw.corpora.code) for c in COMMENT.findall(document.text)]
    first = draw.rng.randrange(len(comments))
    return fill(draw, go_round(["\n" + c for c in comments[first:] + comments[:first]]), num_tokens)


# What fills a prompt, and what stands in front of a fact in it.
HAYSTACKS: dict[str, Callable[[Draw, int], Passage]] = {
    "prose": Draw.prose,
    "code": Draw.code,
    "profile": draw_profile,
    "table": draw_table,
    "sentences": draw_sentences,
    "repeated": draw_repeated,
}
JOINTS = {"prose": " ", "code": "\n# "}
GISTS = {
    "prose": "a speech",
    "code": "a program",
    "profile": "a report on a country",
    "table": "a table",
    "sentences": "a list of sentences",
}


def fill(draw: Draw, units: Iterator[str], num_tokens: int) -> Passage:
    """Units until `num_tokens` are reached; the last one is cut at a word."""
    passage, left, counts = Passage(), num_tokens, dict[str, int]()
    for unit in units:
        if unit not in counts:
            counts[unit] = len(encode(unit, draw.tokenizer))
        count = counts[unit]
        if count >= left:
            words = unit.split(" ")
            passage.units.append(" ".join(words[: int(len(words) * left / count)]))
            passage.counts.append(left)
            break
        passage.units.append(unit)
        passage.counts.append(count)
        left -= count
    return passage


def shuffle_rounds(draw: Draw, units: list[str]) -> Iterator[str]:
    """All units in a new order, round after round."""
    while True:
        yield from draw.rng.sample(units, len(units))


def go_round(units: list[str]) -> Iterator[str]:
    """All units in their order, round after round."""
    while True:
        yield from units


def short_sentences(draw: Draw, count: int) -> list[str]:
    """Different short sentences, a line each."""
    nouns, adjectives = list_words(draw)
    endings = draw.rng.sample(ENDINGS, count)
    chosen = zip(draw.rng.sample(nouns, count), draw.rng.sample(adjectives, count), endings, strict=True)
    return [f"\nThe {adjective} {noun} {ending}." for noun, adjective, ending in chosen]


def list_words(draw: Draw) -> tuple[list[str], list[str]]:
    """Nouns and adjectives of the split."""
    return take_split(NOUNS, draw.is_heldout), take_split(ADJECTIVES, draw.is_heldout)
