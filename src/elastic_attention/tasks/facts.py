"""Facts: one fact is wanted of several countries whose facts are scattered over prose."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.sample import Sample

NUM_COUNTRIES = 2
# Facts that a small model does not know by heart, so that the text has to be read.
FIELDS = ("highest point", "national symbol", "land area", "coastline")
# (fact, answer prefix), as plain text that goes on with a fact it held before; see needles.
WORDINGS = (
    ("The {field} of {name} is {value}.", "\n\nThe {field} of {name} is"),
    ("{name}, {field}: {value}.", "\n\n{name}, {field}:"),
    ("{name} ({field}): {value}.", "\n\n{name} ({field}):"),
)


def make_facts(draw: Draw, kind: str, category: str) -> Sample:
    """All facts of a few countries, a paragraph each; the text ends where one fact of one country is due."""
    fact, prefix = draw.wording(*WORDINGS)
    asked_field = draw.rng.choice(FIELDS)
    countries = draw.rng.sample(draw.countries(asked_field), NUM_COUNTRIES)
    paragraphs = []
    for country in countries:
        fields = [field for field in FIELDS if field in country.facts]
        draw.rng.shuffle(fields)
        said = [fact.format(field=f, name=country.name, value=country.facts[f]) for f in fields]
        paragraphs.append("\n\n" + " ".join(said) + "\n\n")
    prefix = prefix.format(field=asked_field, name=countries[0].name)
    passage = draw.prose(draw.room(prefix, *paragraphs, is_chat=False))
    passage.scatter(paragraphs, draw.rng)
    return Sample(
        kind=kind,
        category=category,
        context=passage.text,
        question="",
        answer=f" {countries[0].facts[asked_field]}",
        answer_prefix=prefix,
        is_chat=False,
    )
