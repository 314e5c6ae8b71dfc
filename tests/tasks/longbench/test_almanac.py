"""The almanac: six categories from the texts in the package, each sample solvable, held out and of its length."""

import json
import re
from dataclasses import replace

import pytest
from reversible_tokenizer import ReversibleTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks import load_corpora
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.longbench import almanac_tasks
from elastic_attention.tasks.longbench.almanac import TASKS, AlmanacSuite
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample, open_suite

TOKENIZER = ReversibleTokenizer()


@pytest.fixture(scope="module")
def samples():
    suite = open_suite("almanac")
    return {
        (task, i): s
        for task in suite.tasks
        for i, s in enumerate(suite.build(task, range(3), length=2048, seed=0, tokenizer=TOKENIZER))
    }


def said(text):
    return Answer(text=text, token_ids=())


def test_six_categories():
    wanted = {"single_qa", "multi_qa", "summarization", "few_shot", "synthetic", "code"}
    assert {row.category for row in TASKS.values()} == wanted
    assert AlmanacSuite("almanac").substitutes == {}


@pytest.mark.parametrize("task", TASKS)
def test_samples_fill_their_length_and_are_solved_by_their_answer(samples, task):
    suite, prompts = AlmanacSuite("almanac"), set()
    for i in range(3):
        sample = samples[task, i]
        assert isinstance(sample, SuiteSample), sample
        json.dumps(sample.details), json.dumps(dict(sample.groups))
        used = len(sample.prompt_ids) + sample.max_new_tokens
        # Summaries take their answers out of the text and few-shot rounds are whole.
        assert 2048 * (0.6 if TASKS[task].category in ("summarization", "multi_qa") else 0.8) <= used <= 2048
        assert (
            list(sample.prompt_ids)
            == TOKENIZER(sample.prompt, add_special_tokens=not sample.prompt.startswith("<user>"))["input_ids"]
        )
        assert suite.score(said(sample.answers[0]), sample) == pytest.approx(1.0, abs=1e-6)
        assert suite.score(said(""), sample) == 0.0
        assert suite.score(said("qwerty 99"), sample) < 0.5
        assert sample.category == "code" or sample.answers[0] == sample.answers[0].strip() != ""
        prompts.add(sample.prompt)
    assert len(prompts) == 3


def test_a_sample_does_not_depend_on_the_others(samples):
    suite = AlmanacSuite("almanac")
    for task in ("bridge", "next_line"):
        (again,) = suite.build(task, [2], length=2048, seed=0, tokenizer=TOKENIZER)
        (other,) = suite.build(task, [2], length=2048, seed=1, tokenizer=TOKENIZER)
        assert again == samples[task, 2] != replace(other, index=2)


def test_texts_and_facts_are_held_out(samples):
    corpora = load_corpora()
    seen = {c.name for c in corpora.countries} - {c.name for c in take_split(corpora.countries, True)}
    for i in range(3):
        found = re.search(r"does ([A-Z][\w ]+) have\?", samples["stated_fact", i].prompt)
        assert found and found[1] not in seen


def test_paragraphs_are_counted_and_found(samples):
    for i in range(3):
        counted = samples["paragraph_count", i]
        texts = re.findall(r"Paragraph \d+: (.*)", counted.prompt)
        assert len(set(texts)) == int(counted.answers[0]) <= len(texts)
        found = samples["paragraph_retrieval", i]
        texts = dict(re.findall(r"(Paragraph \d+): (.*)", found.prompt))
        words = re.search(r"these words: (.*?)\. Format", found.prompt)[1].split(", ")
        holding = [name for name, text in texts.items() if all(re.search(rf"\b{w}\b", text) for w in words)]
        assert holding == [found.answers[0]]
    assert len({samples["paragraph_count", i].answers for i in range(3)}) > 1


def test_the_fact_stands_in_the_text_and_so_do_its_rivals(samples):
    for i in range(3):
        sample = samples["stated_fact", i]
        facts = re.findall(r"([A-Z][\w ]+?) has the following [\w ()]+: (.*?)\.", sample.prompt)
        assert len(facts) == 3 and sample.answers[0] in sample.prompt
        assert len({name.strip() for name, _ in facts}) == 2


def test_the_next_line_follows(samples):
    for task in ("next_line", "next_line_of_project"):
        for i in range(3):
            sample = samples[task, i]
            assert sample.prompt.endswith("\nNext line of code:\n") and "\n" not in sample.answers[0]
    assert samples["next_line_of_project", 0].prompt.count(".py\n") >= 1


def test_models_without_a_chat_template(samples):
    plain = ReversibleTokenizer(chat_template=None)
    for task in ("bridge", "paragraph_count"):
        (sample,) = AlmanacSuite("almanac").build(task, [0], length=1500, seed=0, tokenizer=plain)
        assert sample.prompt_ids[0] == 0 and "<user>" not in sample.prompt
        assert len(sample.prompt_ids) + sample.max_new_tokens <= 1500


@pytest.mark.parametrize("task", TASKS)
def test_the_least_length_works(task):
    suite = AlmanacSuite("almanac")
    least = suite.find_least_length(task)
    (made,) = suite.build(task, [0], length=least, seed=0, tokenizer=TOKENIZER)
    (skipped,) = suite.build(task, [0], length=least - 1, seed=0, tokenizer=TOKENIZER)
    assert isinstance(made, SuiteSample) and f"ask for {least:,} or more" in skipped.reason


def test_what_cannot_be_made_is_named():
    (skipped,) = AlmanacSuite("almanac").build("overviews", [4], length=600, seed=0, tokenizer=TOKENIZER)
    assert isinstance(skipped, Skipped) and skipped.index == 4
    assert skipped.reason == "--lengths 600 is too short for overviews; ask for 1,024 or more."
    with pytest.raises(DataError, match="split='train' is unknown; use heldout or heldout_format"):
        open_suite("almanac", split="train")


def test_paragraphs_that_the_text_repeats_count_once(samples, monkeypatch):
    """Short texts go round, so two paragraphs may agree before any is shown twice."""
    for i in range(3):
        sample = samples["paragraph_count", i]
        shown = re.findall(r"^Paragraph \d+: (.*)$", sample.prompt, re.MULTILINE)
        assert sample.answers == (str(len(set(shown))),)
    monkeypatch.setattr(almanac_tasks, "draw_paragraphs", lambda draw, room: ["one", "two"] * 4)
    (sample,) = AlmanacSuite("almanac").build("paragraph_count", [0], length=2048, seed=0, tokenizer=TOKENIZER)
    assert sample.answers == ("2",)
