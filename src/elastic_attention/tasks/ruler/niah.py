"""Needles in a haystack: eight of the thirteen tasks."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from elastic_attention.tasks.ruler.draft import Draft
from elastic_attention.tasks.ruler.haystack import Haystack
from elastic_attention.tasks.ruler.templates import NEEDLE, NIAH, NIAH_SINGLE, NOISE
from elastic_attention.tasks.ruler.words import draw_word

# Forty places spread evenly over the text, in percent of its sentences.
DEPTHS = tuple(round(100 * i / 39) for i in range(40))


@dataclass(frozen=True, slots=True, kw_only=True)
class NiahKnobs:
    """What the tasks differ in.

    Attributes:
        haystack: "noise" (one line again and again), "essay", or "needle" (needles with other keys).
        key, value: "words", "numbers" or "uuids".
        num_keys, num_values, num_queries: needles by key, values of each, keys asked for.
    """

    haystack: str = "essay"
    key: str = "words"
    value: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    def __post_init__(self) -> None:
        if self.haystack not in ("noise", "essay", "needle"):
            raise ValueError(f"haystack={self.haystack!r} is unknown; use 'noise', 'essay' or 'needle'.")
        if not {self.key, self.value} <= set(DRAWS):
            raise ValueError(f"key={self.key!r}, value={self.value!r}: use {', '.join(DRAWS)}.")


def draw_number(rng: random.Random) -> str:
    """Seven digits, the first not 0."""
    return str(rng.randint(10**6, 10**7 - 1))


def draw_uuid(rng: random.Random) -> str:
    """A random UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


DRAWS = {"numbers": draw_number, "words": draw_word, "uuids": draw_uuid}


def draft_niah(knobs: NiahKnobs, rng: random.Random, haystack: Haystack | None) -> Draft:
    """A draft; its units are words of the essays, or lines of the other haystacks.

    Args:
        haystack: needed for "essay".
    """
    num_keys = max(knobs.num_keys, knobs.num_queries)
    keys = [DRAWS[knobs.key](rng) for _ in range(num_keys)]
    values = [[DRAWS[knobs.value](rng) for _ in range(knobs.num_values)] for _ in keys]
    needles = [
        NEEDLE.format(kind=knobs.value, key=key, value=value)
        for key, held in zip(keys, values, strict=True)
        for value in held
    ]
    rng.shuffle(needles)
    asked = rng.sample(range(num_keys), knobs.num_queries)
    query = join_words([keys[i] for i in asked])
    is_single = knobs.num_queries * knobs.num_values == 1
    template, kind = (NIAH_SINGLE, knobs.value[:-1]) if is_single else (NIAH, knobs.value)
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    place_seed, lines_seed = rng.random(), rng.random()

    def write(num_units: int) -> str:
        if knobs.haystack == "essay":
            assert haystack is not None
            context = hide_in_sentences(haystack.take_sentences(num_units), needles, depths)
        else:
            lines = write_lines(knobs, num_units, random.Random(lines_seed))
            places = random.Random(place_seed).sample(range(num_units), len(needles))
            for place, needle in zip(sorted(places, reverse=True), needles, strict=True):
                lines.insert(place, needle)
            context = "\n".join(lines)
        return template.text.format(kind=kind, context=context, query=query)

    return Draft(
        write=write,
        answer_prefix=template.answer_prefix.format(kind=kind, query=query),
        answers=tuple(value for i in asked for value in values[i]),
        smallest=len(needles),
    )


def write_lines(knobs: NiahKnobs, num_lines: int, rng: random.Random) -> list[str]:
    """The lines of a haystack without essays; more lines begin with the same ones."""
    if knobs.haystack == "noise":
        return [NOISE] * num_lines
    return [
        NEEDLE.format(kind=knobs.value, key=DRAWS[knobs.key](rng), value=DRAWS[knobs.value](rng))
        for _ in range(num_lines)
    ]


def hide_in_sentences(sentences: list[str], needles: list[str], depths: list[int]) -> str:
    """Sentences with the needles between them, each at its depth in percent."""
    cuts = [0, *(int(len(sentences) * depth / 100) for depth in depths), len(sentences)]
    parts = []
    for i, needle in enumerate([*needles, ""]):
        parts += [*sentences[cuts[i] : cuts[i + 1]], *([needle] if needle else [])]
    return " ".join(parts)


def join_words(words: list[str]) -> str:
    """a; a, and b; a, b, and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"
