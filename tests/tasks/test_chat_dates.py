"""Chat templates that write the date of today: a sample must be the same one tomorrow."""

import pytest

from byte_tokenizer import TEMPLATE, make_byte_tokenizer
from elastic_attention.tasks.sample import open_chat
from elastic_attention.tasks.suite import open_suite, render_prompt

# As Llama 3.2 writes it, which leaves the date to whoever brings one, and as SmolLM3 does.
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)
SMOLLM = "\n{% set today = strftime_now('%d %b %Y') %}{{ today }}"


@pytest.mark.parametrize("head", [LLAMA, SMOLLM])
def test_the_date_in_a_prompt_is_always_the_same(head):
    tokenizer = make_byte_tokenizer(head + TEMPLATE)
    mark = "\n" * head.startswith("\n") + "26 Jul 2024<user>"
    begun = f"{mark}Hello</user><reply>"
    assert open_chat(tokenizer, "Hello") == begun
    assert render_prompt(tokenizer, "Hello", answer_prefix="Well")[0] == f"{begun}Well"
    (sample,) = open_suite("mixture").build("needle", [0], length=4096, seed=1, tokenizer=tokenizer)
    assert sample.prompt.startswith(mark) and len(sample.prompt_ids) <= 4096


def test_templates_without_a_date_stay_as_they_are():
    assert open_chat(make_byte_tokenizer(), "Hello") == "<user>Hello</user><reply>"
