"""Questions over documents: SQuAD and HotpotQA from their official files, or stand-ins made of country facts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import Country, load_corpora
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.json_text import read_json
from elastic_attention.tasks.ruler.draft import Draft
from elastic_attention.tasks.ruler.templates import DOCUMENT, QUESTION

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question: its answers, the documents it needs, and others on its subject; documents by number."""

    query: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Library:
    """Questions over a set of documents."""

    documents: tuple[str, ...]
    questions: tuple[Asked, ...]


def draft_question(library: Library, index: int, rng: random.Random) -> Draft:
    """A draft; its units are documents: the needed ones, then related ones, then any, then all again."""
    asked = library.questions[index]
    held = set(asked.needed) | set(asked.related)
    related = rng.sample(asked.related, len(asked.related))
    others = [i for i in range(len(library.documents)) if i not in held]
    order = [*asked.needed, *related, *rng.sample(others, len(others))]
    seed = rng.random()

    def write(num_units: int) -> str:
        chosen = [library.documents[order[i % len(order)]] for i in range(num_units)]
        random.Random(seed).shuffle(chosen)
        context = "\n\n".join(DOCUMENT.format(number=i, text=text) for i, text in enumerate(chosen, 1))
        return QUESTION.text.format(context=context, query=asked.query)

    return Draft(write=write, answer_prefix=QUESTION.answer_prefix, answers=asked.answers, smallest=len(asked.needed))


@lru_cache(maxsize=4)
def load_library(dataset: str, data: Path | None, corpora: str | None) -> Library:
    """The official file in `data` where it is there, else the stand-in out of the corpora.

    Raises:
        DataError: the file is malformed.
        DownloadError: as `load_corpora` does.
    """
    if not has_questions(dataset, data):
        return make_stand_in(dataset, take_split(load_corpora(corpora).countries, is_heldout=True))
    assert data is not None
    path = data / FILES[dataset]
    read: Callable[[Any], Library] = read_squad if dataset == "squad" else read_hotpotqa
    try:
        library = read(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no {dataset} file ({error!r:.120}); take the official one of RULER.") from error
    if not library.questions:
        raise DataError(f"{path} holds no questions; take the official {dataset} file of RULER.")
    return library


def has_questions(dataset: str, data: Path | None) -> bool:
    """Is the official file there?"""
    return data is not None and (data / FILES[dataset]).is_file()


def read_squad(content: Any) -> Library:
    """SQuAD 2.0: answerable questions, each over its own paragraph; related are the article's other paragraphs."""
    articles = [article["paragraphs"] for article in content["data"]]
    documents = tuple(sorted({paragraph["context"] for article in articles for paragraph in article}))
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for article in articles:
        own = [number[paragraph["context"]] for paragraph in article]
        for paragraph in article:
            needed = number[paragraph["context"]]
            for entry in paragraph["qas"]:
                if not entry["is_impossible"]:
                    questions.append(
                        Asked(
                            query=entry["question"],
                            answers=tuple(answer["text"] for answer in entry["answers"]),
                            needed=(needed,),
                            related=tuple(i for i in own if i != needed),
                        )
                    )
    return Library(documents=documents, questions=tuple(questions))


def read_hotpotqa(content: Any) -> Library:
    """HotpotQA with distractors: a question needs all ten documents that come with it."""
    entries = [(entry, [f"{title}\n{''.join(lines)}" for title, lines in entry["context"]]) for entry in content]
    documents = tuple(sorted({text for _, texts in entries for text in texts}))
    number = {text: i for i, text in enumerate(documents)}
    questions = tuple(
        Asked(
            query=entry["question"],
            answers=(entry["answer"],),
            needed=tuple(dict.fromkeys(number[text] for text in texts)),
        )
        for entry, texts in entries
    )
    return Library(documents=documents, questions=questions)


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
