"""Subject: name the country that a long report is about."""

from __future__ import annotations

from elastic_attention.tasks.corpora import Country, Document
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage, cut_document, split_lines
from elastic_attention.tasks.sample import Sample

MIN_PROFILE_CHARS = 4_000
WORDINGS = (
    ("Read this report.", "Which country is the report about?", "The report is about the country of"),
    (
        "Summarize the following document.",
        "Give its subject in one word or name.",
        "The document describes the country named",
    ),
)


def make_subject(draw: Draw, kind: str, category: str) -> Sample:
    """Shuffled lines of one country's profile, again from the start when it is shorter than the prompt."""
    intro, question, prefix = draw.wording(*WORDINGS)
    countries = [country for country in draw.countries() if len(country.profile) >= MIN_PROFILE_CHARS]
    country = draw.rng.choice(countries)
    profile = cut_document(profile_document(country), split_lines, draw.tokenizer)
    left, passage = draw.room(intro, question, prefix), Passage()
    order = list(range(len(profile.units)))
    smallest = min(profile.counts)
    while left >= smallest:
        draw.rng.shuffle(order)
        for i in order:
            if profile.counts[i] <= left:
                passage.units.append(profile.units[i])
                left -= profile.counts[i]
    return Sample(
        kind=kind,
        category=category,
        context=f"{intro}\n{passage.text}",
        question=question,
        answer=f" {country.name}",
        answer_prefix=prefix,
        is_chat=True,
    )


PROFILE_DOCUMENTS: dict[int, Document] = {}


def profile_document(country: Country) -> Document:
    """The profile as a document; one object a country, because cut documents are kept by identity."""
    return PROFILE_DOCUMENTS.setdefault(id(country), Document(country.name, country.profile))
