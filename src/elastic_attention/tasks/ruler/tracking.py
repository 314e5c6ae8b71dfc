"""Variable tracking: names that take one value, one from another, over a haystack of noise."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from elastic_attention.errors import DataError
from elastic_attention.tasks.lengths import TooShort
from elastic_attention.tasks.ruler.draft import Draft, find_size
from elastic_attention.tasks.ruler.templates import NOISE, VARIABLES

EXAMPLE_TOKENS, EXAMPLE_HOPS = 500, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingKnobs:
    """`num_chains` values in the text, each handed on `num_hops` times; the first chain is asked for."""

    num_chains: int = 1
    num_hops: int = 4


def draft_tracking(knobs: TrackingKnobs, rng: random.Random, count_tokens: Callable[[str], int]) -> Draft:
    """A draft behind one solved example of 500 tokens; its units are lines of noise.

    Args:
        count_tokens: of a text, for the size of the example.
    """
    example_seed, place_seed = rng.random(), rng.random()
    names, value, chains = draw_chains(rng, knobs.num_chains, knobs.num_hops, letters=5)
    example = write_example(knobs, example_seed, count_tokens)
    count = knobs.num_hops + 1

    def write(num_units: int) -> str:
        context = hide_chains(num_units, chains, random.Random(place_seed))
        return f"{example}\n\n{VARIABLES.text.format(context=context, query=value)}"

    return Draft(
        write=write,
        answer_prefix=VARIABLES.answer_prefix.format(count=count, query=value),
        answers=tuple(names),
        smallest=count,
    )


def write_example(knobs: TrackingKnobs, seed: float, count_tokens: Callable[[str], int]) -> str:
    """A short solved text, with shorter names."""
    rng = random.Random(seed)
    hops = min(EXAMPLE_HOPS, knobs.num_hops)
    names, value, chains = draw_chains(rng, knobs.num_chains, hops, letters=3)
    answered = VARIABLES.answer_prefix.format(count=hops + 1, query=value)

    def write(num_lines: int) -> str:
        context = hide_chains(num_lines, chains, random.Random(seed))
        return VARIABLES.text.format(context=context, query=value) + answered

    try:
        size = find_size(lambda n: count_tokens(write(n)), smallest=hops + 1, limit=EXAMPLE_TOKENS)
    except TooShort as error:  # no length helps
        raise DataError(f"The example of vt takes more than {EXAMPLE_TOKENS} tokens of this tokenizer.") from error
    return f"{write(size)} {' '.join(names)}"


def draw_chains(
    rng: random.Random, num_chains: int, num_hops: int, letters: int
) -> tuple[list[str], str, list[list[str]]]:
    """Names and value of the first chain, and the assignments of all chains."""
    names: list[str] = []
    while len(names) < num_chains * (num_hops + 1):
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    values, chains = [], []
    for first in range(0, len(names), num_hops + 1):
        own = names[first : first + num_hops + 1]
        values.append(str(rng.randint(10_000, 99_998)))
        handed = [f"VAR {new} = VAR {old} " for old, new in zip(own[:-1], own[1:], strict=True)]
        chains.append([f"VAR {own[0]} = {values[-1]}", *handed])
    return names[: num_hops + 1], values[0], chains


def hide_chains(num_lines: int, chains: list[list[str]], rng: random.Random) -> str:
    """Lines of noise with every chain in its order at random places."""
    lines = [NOISE] * num_lines
    for chain in chains:
        places = sorted(rng.sample(range(len(lines)), len(chain)))
        for moved, (place, text) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + moved, text)
    return "\n".join(lines).replace(". \n", ".\n")
