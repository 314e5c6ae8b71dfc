import copy

import pytest
from tokenizers.processors import TemplateProcessing

from elastic_attention import DataError
from elastic_attention.tasks import TRAINED_KINDS, generate, load_corpora, render, to_row
from elastic_attention.training.data.encoding import Encoder
from elastic_attention.training.data.record import check_record
from hash_tokenizer import HashTokenizer
from made_rows import TEMPLATE, make_row, make_tokenizer

END = "<|end|>"


def encode(template=TEMPLATE, options=None, **changes):
    tokenizer = make_tokenizer(template)
    sample = Encoder(tokenizer, options).encode(check_record(make_row(**changes), "f:1"), "f:1")
    return sample, lambda span: tokenizer.decode(sample.tokens[slice(*span)].tolist())


def test_chat_sample_and_its_spans():
    sample, text = encode(context="A long text.", question="Why?", answer="Because.")
    assert text((0, len(sample.tokens))) == f"<s><|user|>A long text.\n\nWhy?{END}<|assistant|>Because.{END}"
    assert text(sample.context) == "A long text."
    assert text(sample.question) == "Why?"
    assert text(sample.response) == f"Because.{END}"


def test_prompt_is_what_inference_sees():
    """Tokenised in one piece with the generation prompt, so that training and inference see the same tokens."""
    tokenizer = make_tokenizer()
    sample, _ = encode(context="und die", question="fiddlesticks?")
    messages = [{"role": "user", "content": "und die\n\nfiddlesticks?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert sample.tokens[: sample.response[0]].tolist() == prompt


def test_answer_prefix_belongs_to_the_prompt():
    sample, text = encode(answer=" 42", metadata={"answer_prefix": "The number is"})
    assert text((0, sample.response[0])).endswith("<|assistant|>The number is")
    assert text(sample.response) == " 42"  # begun by us, so its end says nothing


def test_plain_sample():
    sample, text = encode(context="x = 1\n", question="", answer="y = 2", metadata={"is_chat": False})
    assert text((0, len(sample.tokens))) == "x = 1\ny = 2"
    assert text(sample.context) == "x = 1\n" and text(sample.question) == ""


def test_plain_sample_begins_as_the_tokenizer_begins_texts():
    """Llama's tokenizers put a token in front that templates write themselves."""
    tokenizer = copy.deepcopy(make_tokenizer())
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", begin)])
    row = make_row(context="x = 1\n", question="", answer="y = 2")
    for is_chat, wanted in ((False, "<s>x = 1\ny = 2"), (True, f"<s><|user|>x = 1\n{END}<|assistant|>y = 2{END}")):
        record = check_record(row | {"metadata": {"is_chat": is_chat}}, "f:1")
        sample = Encoder(tokenizer).encode(record, "f:1")
        assert tokenizer.decode(sample.tokens.tolist()) == wanted
        assert tokenizer.decode(sample.tokens[slice(*sample.context)].tolist()) == "x = 1\n"


@pytest.mark.parametrize(("context", "question"), [("", "Who?"), ("Only text.", "")])
def test_empty_parts(context, question):
    sample, text = encode(context=context, question=question)
    assert text(sample.context) == context and text(sample.question) == question
    assert f"<|user|>{context}{question}{END}" in text((0, len(sample.tokens)))


def test_repeated_words_do_not_confuse_the_spans():
    sample, text = encode(context="user user", question="user", answer="user")
    assert [text(span) for span in (sample.context, sample.question)] == ["user user", "user"]


def test_characters_of_many_bytes():
    sample, text = encode(context="🙂 näher 漢字", question="什么?", answer="é")
    assert text(sample.context) == "🙂 näher 漢字" and text(sample.question) == "什么?"
    assert text(sample.response) == f"é{END}"


def test_template_that_strips():
    sample, text = encode(TEMPLATE.replace("m.content", "m.content|trim"), context="\n  a text", question="Why? \n")
    assert text(sample.context) == "a text" and text(sample.question) == "Why?"


def test_template_options_reach_the_template():
    sample, text = encode(options={"quiet": True})
    assert text((0, sample.response[0])).endswith("<|assistant|>(quiet)")


@pytest.mark.parametrize("kind", TRAINED_KINDS)
def test_generated_samples_keep_their_tokens(kind):
    tokenizer = make_tokenizer()
    sample = generate(kind, seed=0, index=1, target_tokens=1200, corpora=load_corpora(), tokenizer=tokenizer)
    prompt, answer = render(sample, tokenizer)
    coded = Encoder(tokenizer).encode(check_record(to_row(sample), "f:1"), "f:1")
    ends = [tokenizer.eos_token_id] * (sample.is_chat and not sample.answer_prefix and bool(tokenizer.eos_token_id))
    assert coded.tokens.tolist() == prompt + answer + ends
    assert coded.response[0] == len(prompt)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the chat template fails"),
        ("{{ raise_exception('no') }}", "the chat template fails"),
        ("hello", "drops the user's text"),
        ("{{ messages[0].content|upper }}", "drops the user's text"),
        ("{{ messages[0].content|replace('word', 'x') }}", "changes the user's text; .* is_chat = false"),
    ],
)
def test_bad_templates(template, said):
    with pytest.raises(DataError, match=f"^f:1: the chat template|{said}") as caught:
        encode(template)
    assert said.split(";")[0] in str(caught.value)


def test_slow_tokenizer():
    with pytest.raises(DataError, match="HashTokenizer .* use a fast tokenizer"):
        Encoder(HashTokenizer())


def test_fingerprint_sees_tokenizer_template_and_options():
    prints = {
        Encoder(make_tokenizer()).fingerprint(),
        Encoder(make_tokenizer(TEMPLATE + " ")).fingerprint(),
        Encoder(make_tokenizer(), {"quiet": True}).fingerprint(),
        Encoder(make_tokenizer("{{ strftime_now('%f') }}" + TEMPLATE)).fingerprint(),
    }
    assert len(prints) == 4
    assert Encoder(make_tokenizer()).fingerprint() in prints
