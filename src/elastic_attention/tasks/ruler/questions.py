"""The questions of RULER: SQuAD and HotpotQA from their official files, or stand-ins made of country facts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import Country, load_corpora
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.ruler.library import Asked, Library
from elastic_attention.tasks.ruler.official import read_hotpotqa, read_squad

FILES = {"squad": "squad.json", "hotpotqa": "hotpotqa.json"}
SUBSTITUTES = {
    "squad": "held-out country facts for SQuAD",
    "hotpotqa": "held-out country facts in two steps for HotpotQA",
}
# A stand-in's documents: what one of them says of a country.
SHEETS = {
    "Government": ("capital", "currency", "national symbol"),
    "Geography": ("highest point", "lowest point", "land area", "coastline", "region"),
}
FIRST_HOPS = ("highest point", "lowest point", "national symbol", "currency")
MAX_PROFILE_WORDS = 120

Sheet = tuple[str, str]
"""Country and sheet."""


@lru_cache(maxsize=4)
def load_library(dataset: str, data: Path | None, corpora: str | None) -> Library:
    """The official file in `data` where it is there, else the stand-in out of the corpora.

    Raises:
        DataError: the file cannot be read, or holds no question that can be asked.
        DownloadError: as `load_corpora` does.
    """
    if not has_questions(dataset, data):
        return make_stand_in(dataset, take_split(load_corpora(corpora).countries, is_heldout=True))
    assert data is not None
    path = data / FILES[dataset]
    library = (read_squad if dataset == "squad" else read_hotpotqa)(path)
    if not any(isinstance(asked, Asked) for asked in library.questions):
        reason = next(map(str, library.questions), "it is empty.")
        raise DataError(f"{path} holds no question that can be asked: {reason} Or take RULER's own {dataset} file.")
    return library


def has_questions(dataset: str, data: Path | None) -> bool:
    """Is the official file there?"""
    return data is not None and (data / FILES[dataset]).is_file()


def make_stand_in(dataset: str, countries: Sequence[Country]) -> Library:
    """Questions of one step for "squad", of two for "hotpotqa", in random order."""
    clean = [
        Country(c.name, {field: value for field, value in c.facts.items() if "unnamed" not in value}, c.profile)
        for c in countries
    ]
    sheets, others = write_sheets(clean)
    asked = ask_directly(clean, sheets) if dataset == "squad" else ask_in_two_steps(clean, sheets)
    random.Random(0).shuffle(asked)
    return Library(documents=(*sheets.values(), *others), questions=tuple(asked))


def ask_directly(countries: Sequence[Country], sheets: Mapping[Sheet, str]) -> list[Asked]:
    """One fact of one country, out of the sheet that says it."""
    number = {key: i for i, key in enumerate(sheets)}
    questions = []
    for country in countries:
        own = [number[key] for key in sheets if key[0] == country.name]
        for (name, sheet), needed in number.items():
            if name == country.name:
                questions += [
                    Asked(
                        query=f"What is the {field} of {name}?",
                        answers=(country.facts[field],),
                        needed=(needed,),
                        related=tuple(i for i in own if i != needed),
                    )
                    for field in SHEETS[sheet]
                    if field in country.facts
                ]
    return questions


def ask_in_two_steps(countries: Sequence[Country], sheets: Mapping[Sheet, str]) -> list[Asked]:
    """A country known by one fact, asked for another that stands in its other sheet."""
    number = {key: i for i, key in enumerate(sheets)}
    counts = Counter((field, value) for country in countries for field, value in country.facts.items())
    questions = []
    for country in countries:
        for first in FIRST_HOPS:
            value = country.facts.get(first)
            if value is None or counts[first, value] > 1:  # it must name one country alone
                continue
            known = next(sheet for sheet, fields in SHEETS.items() if first in fields)
            wanted = next(sheet for sheet in SHEETS if sheet != known)
            for field in SHEETS[wanted]:
                if field in country.facts and (country.name, wanted) in number:
                    questions.append(
                        Asked(
                            query=f"What is the {field} of the country whose {first} is {value}?",
                            answers=(country.facts[field],),
                            needed=(number[country.name, known], number[country.name, wanted]),
                        )
                    )
    return questions


def write_sheets(countries: Sequence[Country]) -> tuple[dict[Sheet, str], list[str]]:
    """(country, sheet) -> its document, and the documents of other facts, pieces of the countries' profiles."""
    sheets: dict[Sheet, str] = {}
    others: list[str] = []
    for country in countries:
        for sheet, fields in SHEETS.items():
            said = [
                f"The {field} of {country.name} is {country.facts[field]}."
                for field in fields
                if field in country.facts
            ]
            if said:
                sheets[country.name, sheet] = f"{sheet} of {country.name}\n{' '.join(said)}"
        others += cut_profile(country)
    return sheets, others


def cut_profile(country: Country) -> list[str]:
    """The profile in pieces of about 120 words, by whole lines."""
    pieces: list[list[str]] = [[]]
    for line in country.profile.splitlines():
        if sum(len(kept.split()) for kept in pieces[-1]) + len(line.split()) > MAX_PROFILE_WORDS:
            pieces.append([])
        pieces[-1].append(line)
    return [f"Facts on {country.name}\n" + "\n".join(piece) for piece in pieces if piece]
