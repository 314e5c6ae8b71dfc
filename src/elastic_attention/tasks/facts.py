"""Facts: a question about one of several countries whose facts are scattered over prose."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

NUM_COUNTRIES = 4
FIELDS = ("capital", "highest point", "national symbol", "currency", "land area", "coastline")
# (introduction, fact, question, answer prefix)
WORDINGS = (
    (
        "Read the text. I will ask about one of the countries afterwards.",
        "The {field} of {name} is {value}.",
        "What is the {field} of {name} according to the text?",
        "The {field} of {name} is",
    ),
    (
        "The document below holds notes about countries.",
        "{name} ({field}): {value}.",
        "Look up the note about {name} ({field}).",
        "{name} ({field}):",
    ),
)


def make_facts(draw: Draw, kind: str, category: str) -> Sample:
    """All facts of a few countries, a paragraph each; the question is about one fact of one country."""
    intro, fact, question, prefix = draw.wording(*WORDINGS)
    asked_field = draw.rng.choice(FIELDS)
    countries = draw.rng.sample(draw.countries(asked_field), NUM_COUNTRIES)
    paragraphs = []
    for country in countries:
        fields = [field for field in FIELDS if field in country.facts]
        draw.rng.shuffle(fields)
        said = [fact.format(field=f, name=country.name, value=country.facts[f]) for f in fields]
        paragraphs.append("\n" + " ".join(said) + "\n")
    asked = {"field": asked_field, "name": countries[0].name}
    question, prefix = question.format(**asked), prefix.format(**asked)
    passage = draw.prose(draw.room(intro, question, prefix, *paragraphs))
    passage.scatter(paragraphs, draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=f"{intro}\n{passage.text}",
        question=question,
        answer=f" {countries[0].facts[asked_field]}",
        answer_prefix=prefix,
        is_chat=True,
    )
