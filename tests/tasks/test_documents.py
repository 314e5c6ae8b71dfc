"""Questions on documents and summaries: the answers stand in the texts where they should, or do not where not."""

import random
import re

import pytest

from elastic_attention.errors import DataError
from elastic_attention.tasks import load_corpora
from elastic_attention.tasks.corpora import Corpora, Document
from elastic_attention.tasks.counting import NominalTokenizer
from elastic_attention.tasks.document_questions import read_number
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.mixture import MIXTURE
from elastic_attention.tasks.registry import make_sample
from elastic_attention.tasks.reports import OVERVIEW, draw_reports
from elastic_attention.tasks.sample import encode_prompt
from elastic_attention.tasks.summaries import split_docstring

TOKENIZER, CORPORA = NominalTokenizer(), load_corpora()
NEW = {"single_qa": ["report_line"], "multi_qa": ["bridge", "comparison", "collection"],
       "summarization": ["overviews", "module_lines"]}  # fmt: skip
TASKS = [(category, task) for category, tasks in NEW.items() for task in tasks]


def make(task, *, index=0, target_tokens=3000, split="train", corpora=CORPORA):
    category = next(c for c in MIXTURE if task in MIXTURE[c])
    return make_sample(
        task, category, MIXTURE[category][task], seed=0, index=index, target_tokens=target_tokens, corpora=corpora,
        tokenizer=TOKENIZER, split=split,
    )  # fmt: skip


def documents_of(sample):
    parts = re.split(r"(?:^|\n\n)Document \d+: (.*)\n", sample.context)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("category", "task"), TASKS)
@pytest.mark.parametrize("target_tokens", [1200, 5000, 12_000])
def test_length_is_just_below_the_target(category, task, target_tokens):
    for index in range(4):
        sample = make(task, index=index, target_tokens=target_tokens)
        assert 0.85 * target_tokens <= len(encode_prompt(sample, TOKENIZER)) <= target_tokens
        assert (sample.category, sample.kind, sample.is_chat, sample.answer_prefix) == (category, task, True, "")


@pytest.mark.parametrize("index", range(8))
def test_a_line_of_the_report_is_the_answer(index):
    sample = make("report_line", index=index, target_tokens=2000 + 3000 * (index % 2))
    field = re.search(r'"(.+?)"', sample.question).group(1)
    lines = [line for line in sample.context.splitlines() if line.startswith(f"{field} of ")]
    assert len(lines) == 1 and lines[0].endswith(f": {sample.answer}")


BRIDGES = (
    r"What is the (?P<wanted>.+?) of the country whose (?P<told>.+?) is (?P<value>.+)\?$",
    r"One country's (?P<told>.+?) is (?P<value>.+)\. Give the (?P<wanted>.+) of this country",
)


@pytest.mark.parametrize("index", range(8))
def test_a_bridge_has_one_answer(index):
    sample = make("bridge", index=index)
    found = next(match for pattern in BRIDGES if (match := re.search(pattern, sample.question)))
    documents = documents_of(sample)
    meant = [text for text in documents.values() if f"{found['told'].capitalize()}: {found['value']}." in text]
    assert len(meant) == 1 and len(documents) >= 4
    assert f"{found['wanted'].capitalize()}: {sample.answer}." in meant[0]


@pytest.mark.parametrize("index", range(8))
def test_a_comparison_is_right(index):
    sample = make("comparison", index=index)
    field = "Land area" if "land area" in sample.question else "Coastline"
    documents = documents_of(sample)
    asked = {name: text for name, text in documents.items() if name in sample.question}
    numbers = {name: read_number(re.search(rf"{field}: ([^.]+)", text).group(1)) for name, text in asked.items()}
    assert len(numbers) == 2 and len(documents) >= 4
    assert numbers[sample.answer] == max(numbers.values())


@pytest.mark.parametrize("index", range(8))
def test_a_collection_keeps_the_order(index):
    sample = make("collection", index=index)
    documents, field = documents_of(sample), re.search(r"(capital|currency|highest point)", sample.question).group(1)
    asked = sorted((name for name in documents if name in sample.question), key=sample.question.index)
    facts = [re.search(rf"{field.capitalize()}: (.+?)\. [A-Z]", documents[name]).group(1) for name in asked]
    assert len(asked) == 3 and sample.answer == ", ".join(facts)


@pytest.mark.parametrize("target_tokens", [1500, 9000])
def test_overviews_are_not_in_the_documents(target_tokens):
    sample = make("overviews", target_tokens=target_tokens)
    documents, answers = documents_of(sample), sample.answer.split("\n\n")
    assert [answer.partition(": ")[0] for answer in answers] == list(documents)
    assert OVERVIEW not in sample.context
    assert all(answer.partition(": ")[2] not in sample.context for answer in answers)


def test_module_lines_are_docstrings_that_were_taken_out():
    for index in range(4):
        sample = make("module_lines", index=index, target_tokens=6000)
        documents, answers = documents_of(sample), sample.answer.splitlines()
        assert [answer.partition(": ")[0] for answer in answers] == list(documents)
        for answer in answers:
            title, _, line = answer.partition(": ")
            assert line not in documents[title]
            module = next(document for document in CORPORA.code if document.title == title)
            assert line in module.text


def test_docstrings():
    def split(text):
        return split_docstring(Document("m.py", text))

    line, rest = split('# first\n"""A module that does much.\n\nMore.\n"""\nx = 1\n')
    assert line == "A module that does much." and rest.text == "# first\nx = 1"
    assert split("x = 1") is split('"""short"""') is split("def (:") is None


def test_numbers():
    assert [read_number(t) for t in ("786,380 sq km", "2.5 km", "none")] == [786_380.0, 2.5, 0.0]


def test_splits_share_no_country():
    draws = [
        Draw(rng=random.Random(0), split=split, corpora=CORPORA, tokenizer=TOKENIZER, num_tokens=2000)
        for split in ("train", "heldout")
    ]
    train, heldout = ({report.country.name for report in draw_reports(draw)} for draw in draws)
    assert train and heldout and not train & heldout


def test_too_few_countries():
    few = Corpora(prose=CORPORA.prose, code=CORPORA.code, countries=CORPORA.countries[:2])
    with pytest.raises(DataError, match="too few countries.*elastic_attention.tasks.corpora"):
        make("collection", corpora=few)
