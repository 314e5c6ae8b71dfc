"""Questions about documents: one line of a long report, or facts that stand in several reports."""

from __future__ import annotations

import re

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import COMMAND
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage
from elastic_attention.tasks.reports import draw_reports, fill_room, join_documents
from elastic_attention.tasks.sample import Sample, encode

# Facts that a report's first line names, in the order in which they are said.
STATED = ("capital", "highest point", "lowest point", "national symbol", "currency", "land area", "coastline")
# What may tell a country apart from others, and what may then be asked about it.
TELLING = ("capital", "highest point", "national symbol")
COMPARED = {"land area": "the larger land area", "coastline": "the longer coastline"}
NUM_DOCUMENTS, NUM_COLLECTED, HEADING_TOKENS = 4, 3, 80
LINE_WORDINGS = (
    ("Read the document.", 'What does the document say about {name} under "{field}"?'),
    ("The following report is about {name}, among other things.", 'Quote what it gives as "{field}" of {name}.'),
    ("Below is a collection of papers.", 'Find the entry "{field}" on {name} and repeat it.'),
)
BRIDGE_WORDINGS = (
    ("Answer the question from the documents.", "What is the {wanted} of the country whose {told} is {value}?"),
    ("Read these reports.", "One country's {told} is {value}. Give the {wanted} of this country."),
    ("Here are several texts.", "Find the country with the {told} {value}. What is its {wanted}?"),
)
COMPARE_WORDINGS = (
    ("Answer the question from the documents.", "Which country has {more}, {first} or {second}?"),
    ("Read these reports.", "Compare {first} and {second}: which of the two has {more}?"),
    ("Here are several texts.", "{first} or {second}: name the one with {more}."),
)
COLLECT_WORDINGS = (
    ("Answer the question from the documents.", "Name the {field} of each of these countries, in this order: {names}."),
    ("Read these reports.", "List the {field} of {names}, in this order."),
    ("Here are several texts.", "In this order, {names}: what is the {field} of each?"),
)


def make_report_line(draw: Draw, kind: str, category: str) -> Sample:
    """A report with prose before and after it; one of its lines is asked for."""
    intro, question = draw.wording(*LINE_WORDINGS)
    report = next(report for report in draw_reports(draw) if report.askable())
    index = draw.rng.choice(report.askable())
    words = {"name": report.country.name, "field": report.field(index)}
    intro, question = intro.format(**words), question.format(**words)
    room = draw.room(intro, question)
    size = min(room, sum(report.lines.counts))
    text = report.window(size, index)
    prose = draw.prose(room - size) if room - size > HEADING_TOKENS else Passage()
    cut = draw.rng.randrange(len(prose.units) + 1)
    before, after = Passage(prose.units[:cut]).text, Passage(prose.units[cut:]).text
    document = "\n\n".join(part for part in (before, text, after) if part)
    return chat_sample(kind, category, f"{intro}\n\n{document}", question, report.value(index))


def make_bridge(draw: Draw, kind: str, category: str) -> Sample:
    """Reports on several countries; a fact tells which is meant, another one is asked for."""
    intro, question = draw.wording(*BRIDGE_WORDINGS)
    told = draw.rng.choice(TELLING)
    wanted = draw.rng.choice([field for field in STATED if field != told])
    documents, facts = draw_documents(draw, (told, wanted), 1, intro, question)
    name = next(iter(facts))
    question = question.format(wanted=wanted, told=told, value=facts[name][told])
    return chat_sample(kind, category, f"{intro}\n\n{documents}", question, facts[name][wanted])


def make_comparison(draw: Draw, kind: str, category: str) -> Sample:
    """Reports on several countries; two of them are compared by a number."""
    intro, question = draw.wording(*COMPARE_WORDINGS)
    field = draw.rng.choice(sorted(COMPARED))
    documents, facts = draw_documents(draw, (field,), 2, intro, question)
    first, second = facts
    more = max(facts, key=lambda name: read_number(facts[name][field]))
    question = question.format(more=COMPARED[field], first=first, second=second)
    return chat_sample(kind, category, f"{intro}\n\n{documents}", question, more)


def make_collection(draw: Draw, kind: str, category: str) -> Sample:
    """Reports on several countries; the same fact of three of them is asked for."""
    intro, question = draw.wording(*COLLECT_WORDINGS)
    field = draw.rng.choice(("capital", "currency", "highest point"))
    documents, facts = draw_documents(draw, (field,), NUM_COLLECTED, intro, question)
    question = question.format(field=field, names=", ".join(facts))
    answer = ", ".join(facts[name][field] for name in facts)
    return chat_sample(kind, category, f"{intro}\n\n{documents}", question, answer)


def draw_documents(
    draw: Draw, fields: tuple[str, ...], num_asked: int, *fixed: str
) -> tuple[str, dict[str, dict[str, str]]]:
    """Shuffled reports, each headed by its country's facts; and the facts of `num_asked` of them that have `fields`.

    What is asked of the countries differs between them, so that an answer is right for one question only.
    """
    reports = draw_reports(draw)
    asked: dict[str, dict[str, str]] = {}
    for report in reports:
        facts = report.country.facts
        taken = {(field, other[field]) for other in asked.values() for field in fields}
        if all(field in facts and (field, facts[field]) not in taken for field in fields) and len(asked) < num_asked:
            asked[report.country.name] = facts
    if len(asked) < num_asked:
        raise DataError(f"these texts hold too few countries with {list(fields)}; build them whole with '{COMMAND}'.")
    reports.sort(key=lambda report: report.country.name not in asked)  # those asked about first: all of them fit
    said = {(field, facts[field]) for facts in asked.values() for field in fields}
    others = [r for r in reports if r.country.name not in asked and not said & set(r.country.facts.items())]
    room = draw.room(*fixed, "word " * 40)
    chosen = fill_room(draw, [*reports[: len(asked)], *others], room, NUM_DOCUMENTS)
    draw.rng.shuffle(chosen)
    documents = []
    for report, share in chosen:
        facts = report.country.facts
        heading = " ".join(f"{field.capitalize()}: {facts[field]}." for field in STATED if field in facts)
        left = share - len(encode(heading, draw.tokenizer)) - 16
        start = draw.rng.randrange(len(report.lines.units))
        body = report.window(left, start) if left >= report.lines.counts[start] else ""
        documents.append((report.country.name, f"{heading}\n{body}".rstrip()))
    return join_documents(documents), asked


def read_number(text: str) -> float:
    """The first number of a fact such as "786,380 sq km"."""
    found = re.search(r"\d[\d,]*(?:\.\d+)?", text)
    return float(found.group().replace(",", "")) if found else 0.0


def chat_sample(kind: str, category: str, context: str, question: str, answer: str) -> Sample:
    """A sample in a chat whose answer is whole."""
    return Sample(
        kind=kind,
        category=category,
        context=context,
        question=question,
        answer=answer,
        answer_prefix="",
        is_chat=True,
    )
