"""Samples: deterministic, of the asked length, answerable from the middle alone, and disjoint between splits."""

import hashlib
import random
import subprocess
import sys

import pytest
from fake_tokenizer import FakeTokenizer

from elastic_attention.tasks import KINDS, SPLITS, generate, load_corpora, load_document, render
from elastic_attention.tasks.drawing import Draw, take_split
from elastic_attention.tasks.sample import Sample, encode

TOKENIZER = FakeTokenizer()
CORPORA = load_corpora()
RETRIEVAL = [name for name, kind in KINDS.items() if kind.category == "sensitive"]


def make(kind, *, index=0, target_tokens=2048, split="train", seed=0):
    return generate(
        kind,
        seed=seed,
        index=index,
        target_tokens=target_tokens,
        corpora=CORPORA,
        tokenizer=TOKENIZER,
        split=split,
    )


def test_kinds_have_known_columns():
    assert len(KINDS) >= 12
    assert {kind.category for kind in KINDS.values()} == {"sensitive", "robust"}
    assert {kind.metric for kind in KINDS.values()} == {"exact", "token_accuracy"}
    assert len(RETRIEVAL) >= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target_tokens", [1024, 3000, 8000])
def test_length_is_just_below_the_target(kind, target_tokens):
    for split in SPLITS:
        for index in range(3):
            sample = make(kind, index=index, target_tokens=target_tokens, split=split)
            prompt_ids, answer_ids = render(sample, TOKENIZER)
            assert 0.9 * target_tokens <= len(prompt_ids) <= target_tokens
            assert 1 <= len(answer_ids) <= 64
            assert (sample.kind, sample.category) == (kind, KINDS[kind].category)


@pytest.mark.parametrize("kind", KINDS)
def test_short_prompts_have_something_to_say(kind):
    for index in range(40):
        sample = make(kind, index=index, target_tokens=900)
        assert sample.answer.strip(), index


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_sample_and_others_differ(kind):
    first = make(kind)
    assert make(kind) == first
    assert make(kind, index=1) != first
    assert make(kind, seed=1) != first
    assert make(kind, split="heldout") != first


def test_golden_sample():
    """The bytes of a sample never change between machines and Python versions."""
    sample = make("needles_4", index=3, target_tokens=1024)
    digest = hashlib.sha256("\0".join([sample.context, sample.answer_prefix, sample.answer]).encode()).hexdigest()
    assert digest[:16] == "4332b3d040a6e4d0"


@pytest.mark.parametrize("kind", RETRIEVAL)
@pytest.mark.parametrize("target_tokens", [1500, 4000])
def test_answer_stands_in_the_middle_only(kind, target_tokens):
    """Neither a sink of 64 nor a window of 576 tokens (512 and its block) holds the answer."""
    for index in range(10):
        sample = make(kind, index=index, target_tokens=target_tokens)
        prompt_ids, _ = render(sample, TOKENIZER)
        ids = encode(sample.answer, TOKENIZER)
        places = [i for i in range(len(prompt_ids)) if prompt_ids[i : i + len(ids)] == ids]
        hidden = [i for i in places if i >= 64 and i + len(ids) <= len(prompt_ids) - 576]
        assert hidden, (sample.answer, places)
        if kind != "facts":  # a fact may be a common word
            assert places == hidden


@pytest.mark.parametrize("kind", ["needle", "needles_2", "lookup"])
def test_splits_share_no_key_and_no_number(kind):
    found = {
        split: {(s.answer, s.answer_prefix) for s in (make(kind, index=i, split=split) for i in range(40))}
        for split in SPLITS
    }
    words = {
        split: {word for _, prefix in rows for word in prefix.replace("-", " ").split()}
        for split, rows in found.items()
    }
    common = {"The", "special", "magic", "number", "for", "is", "access", "code", "of", "From", "the", "Note:", "="}
    common |= {"Record", "telephone", "list:", "table", "prices:"}
    keys_train, keys_heldout = words["train"] - common, words["heldout"] - common
    assert keys_train and keys_heldout and not {k.strip(":") for k in keys_train} & {k.strip(":") for k in keys_heldout}
    assert {int(answer) % 2 for answer, _ in found["train"]} == {0}
    assert {int(answer) % 2 for answer, _ in found["heldout"] | found["heldout_format"]} == {1}


def test_splits_share_no_text():
    parts = [take_split(CORPORA.prose, is_heldout) for is_heldout in (False, True)]
    assert parts[0] and parts[1]
    assert not {d.title for d in parts[0]} & {d.title for d in parts[1]}
    assert len(parts[0]) + len(parts[1]) == len(CORPORA.prose)


def test_last_wording_is_kept_for_the_heldout_format():
    fields = {"corpora": CORPORA, "tokenizer": TOKENIZER, "num_tokens": 1024}
    for split, expected in {"train": {"a", "b"}, "heldout": {"a", "b"}, "heldout_format": {"c"}}.items():
        draws = [Draw(rng=random.Random(i), split=split, **fields) for i in range(20)]
        assert {draw.wording("a", "b", "c") for draw in draws} == expected


def test_render_chat_and_plain():
    fields = {"kind": "k", "category": "c", "context": "a b", "question": " q", "answer": " x", "answer_prefix": "p is"}
    prompt_ids, answer_ids = render(Sample(is_chat=True, **fields), TOKENIZER)
    assert prompt_ids == TOKENIZER.encode("<user>\na b\n\n q\n<assistant>\np is")
    assert answer_ids == TOKENIZER.encode(" x")
    assert render(Sample(is_chat=False, **fields), TOKENIZER)[0] == TOKENIZER.encode("a b qp is")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "x"}, "'x' is unknown"), ({"split": "test"}, "'test' is unknown"), ({"target_tokens": 99}, "is 99")],
)
def test_bad_arguments(change, message):
    arguments = {"kind": "needle", "split": "train", "target_tokens": 1024} | change
    with pytest.raises(ValueError, match=message):
        make(arguments["kind"], split=arguments["split"], target_tokens=arguments["target_tokens"])


def test_document():
    document = load_document()
    assert 30_000 <= len(document.text) <= 60_000 and "tariff" in document.text
    with pytest.raises(KeyError, match="1887 Grover Cleveland"):
        load_document("none")


def test_package_is_pure_python():
    """Row 1 of the layers: neither torch nor transformers is imported."""
    script = "import sys, elastic_attention.tasks.registry; print({'torch', 'transformers'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["set()"]
