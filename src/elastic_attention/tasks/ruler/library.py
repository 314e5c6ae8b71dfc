"""Questions over documents: what they need, and a prompt of any size."""

from __future__ import annotations

import random
from dataclasses import dataclass

from elastic_attention.errors import DataError
from elastic_attention.tasks.ruler.draft import Draft
from elastic_attention.tasks.ruler.templates import DOCUMENT, QUESTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question: its answers, the documents it needs, and others on its subject; documents by number."""

    query: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Library:
    """Questions over a set of documents; of a record that cannot be asked, its place has the reason why."""

    documents: tuple[str, ...]
    questions: tuple[Asked | str, ...]


def draft_question(library: Library, index: int, rng: random.Random) -> Draft:
    """A draft; its units are documents: the needed ones, then related ones, then any, then all again.

    Raises:
        DataError: the record of this index is malformed.
    """
    asked = library.questions[index]
    if isinstance(asked, str):
        raise DataError(asked)
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
