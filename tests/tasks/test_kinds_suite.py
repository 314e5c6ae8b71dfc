"""The project's own kinds as a suite: also for models that know no conversation."""

import re
from dataclasses import replace

import pytest
from fake_tokenizer import FakeTokenizer

from elastic_attention.tasks.kinds_suite import KindsSuite
from elastic_attention.tasks.registry import ALL_KINDS, KINDS
from elastic_attention.tasks.suite import SuiteSample, open_suite


class PlainTokenizer(FakeTokenizer):
    """A base model's; transformers raises ValueError for such a one."""

    chat_template = None

    def apply_chat_template(self, messages, **_):
        raise ValueError("tokenizer.chat_template is not set")


@pytest.mark.parametrize("task", ["needle", "classes", "prose"])
def test_models_without_a_chat_template_read_plain_prompts(task):
    (sample,) = open_suite("mixture").build(task, [0], length=1024, seed=1, tokenizer=PlainTokenizer())
    assert isinstance(sample, SuiteSample), sample
    assert "<user>" not in sample.prompt and len(sample.prompt_ids) <= 1024 and sample.target_ids


class MarkingTokenizer(FakeTokenizer):
    """Puts token 0 before plain text."""

    chat_template = "yes"

    def __call__(self, text, *, add_special_tokens):
        ids = super().__call__(text, add_special_tokens=add_special_tokens)["input_ids"]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}


class PlainMarkingTokenizer(MarkingTokenizer, PlainTokenizer):
    """The same for a base model."""

    chat_template = None


@pytest.mark.parametrize(
    ("task", "tokenizer", "is_marked"),
    [
        ("classes", MarkingTokenizer, True),
        ("subject", MarkingTokenizer, False),
        ("classes", PlainMarkingTokenizer, True),
        ("subject", PlainMarkingTokenizer, True),
    ],
)
def test_plain_prompts_begin_as_in_training(task, tokenizer, is_marked):
    """A chat template writes the mark of the beginning itself; without one, many models say nothing sensible."""
    (sample,) = open_suite("mixture").build(task, [0], length=1024, seed=1, tokenizer=tokenizer())
    assert (sample.prompt_ids[0] == 0) == is_marked and 0 not in (*sample.prompt_ids[1:], *sample.target_ids)
    assert len(sample.prompt_ids) <= 1024


def test_a_length_that_is_too_small_is_named():
    (skipped,) = KindsSuite("mixture").build("needle", [0], length=100, seed=1, tokenizer=FakeTokenizer())
    assert skipped.reason == "--lengths 100 is too short for needle; ask for 512 or more."


def test_a_kind_that_does_not_fit_is_named_with_a_length_that_works(monkeypatch):
    """Not one more than 512 tokens in its shortest form, as with a tokenizer that takes many."""
    suite, needle = KindsSuite("mixture"), KINDS["needle"]
    long = replace(needle, make=lambda *args: replace(needle.make(*args), question=" why" * 600))
    monkeypatch.setitem(ALL_KINDS, "needle", long)
    (skipped,) = suite.build("needle", [0], length=512, seed=1, tokenizer=FakeTokenizer())
    found = re.fullmatch(r"--lengths 512 is too short for needle; ask for ([\d,]+) or more.", skipped.reason)
    length = int(found[1].replace(",", ""))
    (made,) = suite.build("needle", [0], length=length, seed=1, tokenizer=FakeTokenizer())
    assert isinstance(made, SuiteSample) and 512 < length < 1500


@pytest.mark.parametrize("name", ["mixture", "pairs", "validation"])
def test_the_least_length_is_known_without_a_tokenizer(name):
    suite = open_suite(name)
    assert {suite.find_least_length(task) for task in suite.tasks} == {512}
