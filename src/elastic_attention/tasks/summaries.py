"""Summaries that people wrote: what is said of economies in reports, and what modules say that they do."""

from __future__ import annotations

import ast
from functools import lru_cache

from elastic_attention.tasks.corpora import Document
from elastic_attention.tasks.document_questions import chat_sample
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage, cut_document, split_lines
from elastic_attention.tasks.reports import OVERVIEW, draw_reports, fill_room, join_documents
from elastic_attention.tasks.sample import Sample, encode

MIN_TOKENS_OF_A_REPORT, MIN_TOKENS_OF_A_MODULE, MAX_MODULES = 900, 800, 12
OVERVIEW_WORDINGS = (
    ("Read these reports.", "Summarize the economy of each country in one paragraph, in the order of the documents."),
    ("You are given reports on countries.", "Write an economic overview of each country, one paragraph a country."),
    ("Several reports follow.", "Give a short account of every country's economy."),
)
MODULE_WORDINGS = (
    ("Read these source files.", "Say in one line for each file what it does."),
    ("You are given several modules.", "Write a one-line summary of each module, in order."),
    ("Source code follows.", "Describe each file in a single line."),
)


def make_overviews(draw: Draw, kind: str, category: str) -> Sample:
    """Reports without their economic overviews; these are wanted."""
    intro, question = draw.wording(*OVERVIEW_WORDINGS)
    room = draw.room(intro, question)
    chosen = fill_room(draw, draw_reports(draw, OVERVIEW), room, max(1, min(2, room // MIN_TOKENS_OF_A_REPORT)))
    documents, answers = [], []
    for report, share in chosen:
        index = report.index_of(OVERVIEW)
        assert index is not None  # draw_reports saw to it
        title = len(encode(report.country.name, draw.tokenizer)) + 8
        text = report.window(share - title + report.lines.counts[index], index, without=index)
        documents.append((report.country.name, text))
        answers.append(f"{report.country.name}: {report.value(index)}")
    return chat_sample(kind, category, f"{intro}\n\n{join_documents(documents)}", question, "\n\n".join(answers))


def make_module_lines(draw: Draw, kind: str, category: str) -> Sample:
    """Source files without their docstrings; the first line of each is wanted."""
    intro, question = draw.wording(*MODULE_WORDINGS)
    room = draw.room(intro, question)
    modules = [document for document in draw.documents(draw.corpora.code) if split_docstring(document) is not None]
    draw.rng.shuffle(modules)
    count = draw.rng.randint(1, max(1, min(MAX_MODULES, room // MIN_TOKENS_OF_A_MODULE)))
    documents: list[tuple[str, str]] = []
    answers: list[str] = []
    left = room
    for module in modules:
        described = split_docstring(module)
        assert described is not None  # filtered above
        line, rest = described
        lines = cut_document(rest, split_lines, draw.tokenizer)
        title = len(encode(module.title, draw.tokenizer)) + 8
        share = left - title if len(documents) + 1 >= count else min(left, room // count) - title
        text, used = take_first(lines, share)
        if not text:
            break
        documents.append((module.title, text))
        answers.append(f"{module.title}: {line}")
        left -= used + title
        if left < MIN_TOKENS_OF_A_MODULE // 4:
            break
    return chat_sample(kind, category, f"{intro}\n\n{join_documents(documents)}", question, "\n".join(answers))


def take_first(lines: Passage, num_tokens: int) -> tuple[str, int]:
    """The first lines of at most `num_tokens`, and how many tokens they have."""
    used, count = 0, 0
    while count < len(lines.units) and used + lines.counts[count] <= num_tokens:
        used, count = used + lines.counts[count], count + 1
    return "".join(lines.units[:count]).lstrip("\n"), used


@lru_cache(maxsize=1024)
def split_docstring(module: Document) -> tuple[str, Document] | None:
    """The first line of a module's docstring, and the module without the docstring; None if there is no good line."""
    try:
        tree = ast.parse(module.text)
    except SyntaxError:  # written for another Python
        return None
    line = (ast.get_docstring(tree) or "").strip().partition("\n")[0].strip()
    if not (20 <= len(line) <= 120 and " " in line):
        return None
    lines = module.text.splitlines()
    del lines[tree.body[0].lineno - 1 : tree.body[0].end_lineno]
    return line, Document(module.title, "\n".join(lines))
