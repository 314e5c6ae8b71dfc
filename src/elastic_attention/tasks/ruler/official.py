"""The official files of SQuAD and HotpotQA: every record is looked at when they are read, before a model is asked.

A record that cannot be asked or scored leaves in its place the reason why, as those of other suites do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.json_text import find_half_letter, parse_json
from elastic_attention.tasks.longbench.files import describe_fault, find_fault, read_records
from elastic_attention.tasks.ruler.library import Asked, Library


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A question whose documents have no numbers yet."""

    query: str
    answers: tuple[str, ...]
    needed: Sequence[str]
    related: Sequence[str] = ()


def read_squad(path: Path) -> Library:
    """SQuAD 2.0: answerable questions, each over its own paragraph; related are the article's other paragraphs.

    Raises:
        DataError: the file cannot be read, or is no list of articles.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); take the official squad file of RULER.") from error
    if (fault := find_fault(content, data=list)) is not None:
        raise DataError(f"{path} is no squad file ({fault}); take the official one of RULER.")
    documents: set[str] = set()
    entries: list[Entry | str] = []
    for number, article in enumerate(content["data"], 1):
        place = f"{path.name}, article {number}"
        if (fault := find_fault(article, paragraphs=list)) is not None:
            entries.append(describe_fault(place, fault))
            continue
        checked = [(paragraph, _find_paragraph_fault(paragraph)) for paragraph in article["paragraphs"]]
        own = [paragraph["context"] for paragraph, fault in checked if fault is None]
        documents.update(own)
        for i, (paragraph, fault) in enumerate(checked, 1):
            spot = f"{place}, paragraph {i}"
            if fault is None:
                entries += _read_paragraph(spot, paragraph, own)
            else:
                entries.append(describe_fault(spot, fault))
    return _number_documents(documents, entries)


def read_hotpotqa(path: Path) -> Library:
    """HotpotQA with distractors: a question needs all ten documents that come with it.

    Raises:
        DataError: the file cannot be read, or holds no record.
    """
    documents: set[str] = set()
    entries: list[Entry | str] = []
    for place, record in read_records(path):
        fault = record if isinstance(record, str) else _find_hotpotqa_fault(record)
        if isinstance(record, str) or fault is not None:
            entries.append(describe_fault(place, str(fault)))
            continue
        texts = [f"{title}\n{''.join(lines)}" for title, lines in record["context"]]
        documents.update(texts)
        entries.append(Entry(query=record["question"], answers=(record["answer"],), needed=tuple(dict.fromkeys(texts))))
    return _number_documents(documents, entries)


def _number_documents(documents: Iterable[str], entries: Sequence[Entry | str]) -> Library:
    ordered = tuple(sorted(documents))
    number = {text: i for i, text in enumerate(ordered)}

    def ask(entry: Entry) -> Asked:
        return Asked(
            query=entry.query,
            answers=entry.answers,
            needed=tuple(number[text] for text in entry.needed),
            related=tuple(number[text] for text in entry.related),
        )

    questions = tuple(entry if isinstance(entry, str) else ask(entry) for entry in entries)
    return Library(documents=ordered, questions=questions)


def _read_paragraph(place: str, paragraph: dict[str, Any], own: Sequence[str]) -> Iterator[Entry | str]:
    text = paragraph["context"]
    related = [other for other in own if other != text]
    for number, row in enumerate(paragraph["qas"], 1):
        fault = find_fault(row, is_impossible=bool)
        if fault is None and row["is_impossible"]:
            continue
        fault = fault or _find_squad_fault(row)
        if fault is None:
            answers = tuple(answer["text"] for answer in row["answers"])
            yield Entry(query=row["question"], answers=answers, needed=(text,), related=related)
        else:
            yield describe_fault(f"{place}, question {number}", fault)


def _find_paragraph_fault(paragraph: Any) -> str | None:
    fault = find_fault(paragraph, context=str, qas=list)
    if fault is None and not paragraph["context"].strip():
        return "'context' is empty"
    return fault or find_half_letter(paragraph["context"])


def _find_squad_fault(row: dict[str, Any]) -> str | None:
    fault = find_fault(row, question=str, answers=list) or find_half_letter(row)
    fault = fault or next(filter(None, (find_fault(answer, text=str) for answer in row["answers"])), None)
    return fault or _find_text_fault(row["question"], [answer["text"] for answer in row["answers"]])


def _find_hotpotqa_fault(record: dict[str, Any]) -> str | None:
    fault = find_fault(record, question=str, answer=str, context=list)
    if fault is None and not (record["context"] and all(map(_is_document, record["context"]))):
        return "'context' must be documents, one at least, each a title and a list of sentences"
    return fault or _find_text_fault(record["question"], [record["answer"]])


def _is_document(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)):
        return False
    return all(isinstance(text, str) for text in (value[0], *value[1]))


def _find_text_fault(question: str, answers: Sequence[str]) -> str | None:
    """An answer without a letter or digit would stand in whatever a model says."""
    if not question.strip():
        return "'question' is empty"
    if not answers:
        return "there is no answer"
    if wrong := [text for text in answers if not any(map(str.isalnum, text))]:
        return f"the answer {wrong[0]!r:.40} holds no letter or digit"
    return None
