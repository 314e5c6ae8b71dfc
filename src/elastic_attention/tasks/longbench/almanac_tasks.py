"""Tasks of the almanac that training does not have: facts in prose, paragraphs to count and to find, next lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from elastic_attention.tasks.document_questions import STATED, chat_sample
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage, cut_document, split_lines
from elastic_attention.tasks.sample import Sample, encode

# (fact, request, question); the last wording of each list is never used but in the split "heldout_format".
FACT_WORDINGS = (
    (
        " The {field} of {name} is {value}.",
        "Read the text and answer briefly.",
        "What is the {field} of {name}? Give the answer only.",
    ),
    (
        " {name} has the following {field}: {value}.",
        "Answer from this text.",
        "Which {field} does {name} have? Say nothing else.",
    ),
)
COUNT_WORDINGS = (
    (
        "Some of these paragraphs occur more than once.",
        "How many different paragraphs are there? Give the number only.",
    ),
    ("The paragraphs below hold duplicates.", "Without duplicates, how many paragraphs remain? Answer with a number."),
)
FIND_WORDINGS = (
    (
        "Here are numbered paragraphs.",
        'These words come from one of them: {words}. Which one? Answer like "Paragraph 1".',
    ),
    ("Several paragraphs follow.", 'Name the paragraph that holds these words: {words}. Format: "Paragraph 1".'),
)
PARAGRAPH_TOKENS, MAX_PARAGRAPHS, NUM_KEY_WORDS = 120, 30, 8
HEADING_TOKENS, MAX_SENTENCE_TOKENS = 8, 80
CODE_REQUEST, CODE_END = "Please complete the code below.\n", "\nNext line of code:\n"
MIN_LINE_CHARS, MAX_LINE_CHARS = 12, 100


def make_stated_fact(draw: Draw, kind: str, category: str) -> Sample:
    """A fact about a country in the middle of prose, beside another fact about it and the like of another country."""
    fact, intro, question = draw.wording(*FACT_WORDINGS)
    field, other = draw.rng.sample(STATED, 2)
    both = [c for c in draw.countries(field) if other in c.facts]
    asked, rival = draw.rng.sample(both, 2)
    said = [(asked, field), (asked, other), (rival, field)]
    lines = [fact.format(field=f, name=c.name, value=c.facts[f]) for c, f in said]
    question = question.format(field=field, name=asked.name)
    passage = draw.prose(draw.room(intro, question, *lines))
    passage.scatter(lines, draw.rng)
    return chat_sample(kind, category, f"{intro}\n\n{passage.text}", question, asked.facts[field])


def make_paragraph_count(draw: Draw, kind: str, category: str) -> Sample:
    """Paragraphs of prose, some of them again; the number of different ones is wanted."""
    intro, question = draw.wording(*COUNT_WORDINGS)
    paragraphs = draw_paragraphs(draw, draw.room(intro, question))
    num_different = draw.rng.randint((len(paragraphs) + 1) // 2, len(paragraphs))
    kept, dropped = paragraphs[:num_different], paragraphs[num_different:]
    shown = kept + [draw.rng.choice(kept) for _ in dropped]
    draw.rng.shuffle(shown)
    return chat_sample(kind, category, f"{intro}\n\n{number_paragraphs(shown)}", question, str(len(set(shown))))


def make_paragraph_retrieval(draw: Draw, kind: str, category: str) -> Sample:
    """Paragraphs of prose; the number of the one that holds some words is wanted."""
    intro, question = draw.wording(*FIND_WORDINGS)
    paragraphs = draw_paragraphs(draw, draw.room(intro, question, "extraordinary " * NUM_KEY_WORDS))
    words = [set(re.findall(r"\b[a-z]{6,}\b", text)) for text in paragraphs]
    place = draw.rng.randrange(len(paragraphs))
    telling = sorted(words[place].difference(*(w for i, w in enumerate(words) if i != place)) or words[place])
    chosen = draw.rng.sample(telling, min(NUM_KEY_WORDS, len(telling)))
    question = question.format(words=", ".join(chosen))
    return chat_sample(
        kind, category, f"{intro}\n\n{number_paragraphs(paragraphs)}", question, f"Paragraph {place + 1}"
    )


def make_next_line(draw: Draw, kind: str, category: str) -> Sample:
    """Code that goes on; its next line is wanted."""
    passage = draw.code(draw.room(CODE_REQUEST, CODE_END, "x" * MAX_LINE_CHARS, is_chat=False))
    return code_sample(kind, category, passage, first=len(passage.units) // 2)


def make_next_line_of_project(draw: Draw, kind: str, category: str) -> Sample:
    """Several files under their names, then the beginning of one more; its next line is wanted."""
    room = draw.room(CODE_REQUEST, CODE_END, "x" * MAX_LINE_CHARS, is_chat=False)
    documents = draw.documents(draw.corpora.code)
    draw.rng.shuffle(documents)
    passage, left = Passage(), room
    last = cut_document(documents[0], split_lines, draw.tokenizer)
    share = room // 3
    for document in documents[1:]:
        left = room - share - sum(passage.counts)
        if left < PARAGRAPH_TOKENS:
            break
        append_lines(passage, draw, document.title, cut_document(document, split_lines, draw.tokenizer), left)
    first = len(passage.units) + 1
    append_lines(passage, draw, documents[0].title, last, room - sum(passage.counts))
    return code_sample(kind, category, passage, first=(first + len(passage.units)) // 2)


def append_lines(passage: Passage, draw: Draw, title: str, lines: Passage, num_tokens: int) -> None:
    """Add a file's name and as many of its first lines as fit `num_tokens`."""
    heading = f"\n# {title}"
    used = len(encode(heading, draw.tokenizer))
    passage.units.append(heading)
    passage.counts.append(used)
    for unit, count in zip(lines.units, lines.counts, strict=True):
        used += count
        if used > num_tokens:
            break
        passage.units.append(unit)
        passage.counts.append(count)


def code_sample(kind: str, category: str, passage: Passage, *, first: int) -> Sample:
    """The last line from `first` on that is worth guessing, and all lines before it."""
    units = passage.units[:-1]  # the very last line may be cut short
    worth = [i for i in range(max(first, 1), len(units)) if is_telling(units[i])] or [len(units) - 1]
    place = worth[-1]
    return Sample(
        kind=kind,
        category=category,
        context=CODE_REQUEST + "".join(units[:place]).lstrip("\n"),
        question="",
        answer=units[place].lstrip("\n"),
        answer_prefix=CODE_END,
        is_chat=False,
    )


def is_telling(line: str) -> bool:
    """Is this a line of code, neither short nor long, without what the metric takes for a comment?"""
    text = line.strip()
    has_mark = any(mark in text for mark in ("#", "//", "`", '"""'))
    return MIN_LINE_CHARS <= len(text) <= MAX_LINE_CHARS and not has_mark


def draw_paragraphs(draw: Draw, room: int) -> list[str]:
    """Up to 30 paragraphs of one passage of prose, equally long, that together fill `room` tokens with their numbers.

    Each begins with a sentence and may end inside of one; the rest of that sentence is left out.
    """
    count = max(2, min(MAX_PARAGRAPHS, room // PARAGRAPH_TOKENS))
    size = room // count - HEADING_TOKENS
    passage = draw.prose((size + MAX_SENTENCE_TOKENS) * count)
    paragraphs, words, left = [], [], size
    for unit, tokens in zip(passage.units, passage.counts, strict=True):
        said = unit.split()
        words += said[: max(1, len(said) * left // max(tokens, 1))]
        left -= tokens
        if left <= 0:
            paragraphs.append(" ".join(words))
            words, left = [], size
    return paragraphs[:count]


def number_paragraphs(texts: Sequence[str]) -> str:
    """The paragraphs under their numbers."""
    return "\n\n".join(f"Paragraph {i}: {text}" for i, text in enumerate(texts, 1))
