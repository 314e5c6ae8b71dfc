"""Pairs of kinds: the same texts and ways of asking; a fact in the middle on one side, gist or ending on the other."""

import random
import re
from collections import Counter
from functools import cache

import pytest
from fake_tokenizer import FakeTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks import SPLITS, TRAINED_KINDS, generate, load_corpora, render
from elastic_attention.tasks import told as told_module
from elastic_attention.tasks.bodies import GISTS, HAYSTACKS, draw_comments
from elastic_attention.tasks.drawing import Draw, take_split
from elastic_attention.tasks.registry import ALL_KINDS, KINDS, PAIRS, VALIDATION_KINDS
from elastic_attention.tasks.relations import MARK, TRAINED, UNTRAINED, VALIDATION, WORDS, fill_marks
from elastic_attention.tasks.sample import prompt_text
from elastic_attention.tasks.suite import Answer, SuiteSample, open_suite

TOKENIZER, CORPORA = FakeTokenizer(), load_corpora()
TOLD = [kind for kind, row in (PAIRS | VALIDATION_KINDS).items() if row.category == "sensitive"]
SKIMMED = [kind for kind, row in PAIRS.items() if row.category == "robust"]


def make(kind, *, index=0, target_tokens=2048, split="train", seed=0):
    return generate(
        kind, seed=seed, index=index, target_tokens=target_tokens, corpora=CORPORA, tokenizer=TOKENIZER, split=split
    )


@cache
def as_form(text):
    """A pattern of a relation's text: only its words and numbers may stand in the marks."""
    parts = [part or "" for part in re.split(r"(\{[^}]*\})", text)]
    names = [re.sub(r"[{}\d:]", "", part) if part.startswith("{") else None for part in parts]
    return "".join(
        re.escape(part) if name is None else f"(?:{'|'.join(WORDS[name])})" if name else r"\d+"
        for part, name in zip(parts, names, strict=True)
    )


def find_relation(sample, relations):
    """The relation that is asked for."""
    asked = "\n".join([sample.context[:200], sample.question, sample.answer_prefix])
    found = (r for r in relations if re.search(f"{as_form(r.question)}|\n{as_form(r.beginning)}$", asked))
    return next(found, None)


def draw_of(split):
    return Draw(rng=random.Random(0), split=split, corpora=CORPORA, tokenizer=TOKENIZER, num_tokens=2048)


def test_every_haystack_has_both_sides_and_mixture_keeps_its_kinds():
    assert set(PAIRS) == {f"{side}_{name}" for side in ("told", "skimmed") for name in HAYSTACKS}
    assert len(KINDS) == 14 and open_suite("mixture").tasks == open_suite("mixture").headline == tuple(KINDS)
    assert set(TRAINED_KINDS) == set(KINDS) | set(PAIRS) and not set(VALIDATION_KINDS) & set(TRAINED_KINDS)
    assert set(ALL_KINDS) == set(TRAINED_KINDS) | set(VALIDATION_KINDS) and set(GISTS) < set(HAYSTACKS)


@pytest.mark.parametrize("kind", [*PAIRS, *VALIDATION_KINDS])
@pytest.mark.parametrize("target_tokens", [1024, 5000])
def test_length_is_just_below_the_target(kind, target_tokens):
    for split in SPLITS:
        for index in range(4):
            sample = make(kind, index=index, target_tokens=target_tokens, split=split)
            prompt_ids, answer_ids = render(sample, TOKENIZER)
            assert 0.85 * target_tokens <= len(prompt_ids) <= target_tokens
            assert sample.answer.strip() and 1 <= len(answer_ids) <= 64
            assert make(kind, index=index, target_tokens=target_tokens, split=split) == sample


@pytest.mark.parametrize("kind", TOLD)
def test_the_fact_stands_once_in_the_middle(kind):
    for index in range(12):
        sample = make(kind, index=index)
        prompt, (prompt_ids, _) = prompt_text(sample, TOKENIZER), render(sample, TOKENIZER)
        relation = find_relation(sample, (*TRAINED, *VALIDATION))
        assert relation is not None, prompt[-200:]
        form = f"{as_form(relation.beginning)} {as_form(relation.answer)}"
        (told,) = re.finditer(form, sample.context)
        assert told[0].endswith(sample.answer.strip().removesuffix(".")) or sample.answer.startswith(told[0])
        before = prompt[: prompt.index(sample.context) + told.end()]
        place = len(TOKENIZER.encode(before))
        assert 64 <= place <= len(prompt_ids) - 576


@pytest.mark.parametrize("kind", SKIMMED)
def test_the_sparse_side_is_answered_by_gist_or_ending(kind):
    """The last words stand right in front of the question; the sort of text is one of those that are named."""
    kinds_of_answers = Counter()
    for index in range(24):
        sample = make(kind, index=index)
        answer = sample.answer.strip()
        if gist := next((gist for gist in GISTS.values() if gist in answer), None):
            assert GISTS[kind.removeprefix("skimmed_")] == gist
            kinds_of_answers["gist"] += 1
        elif sample.answer_prefix or sample.question:
            end = sample.context.rstrip()[-len(answer) :]
            assert any(answer.endswith(end[-n:]) for n in range(1, 40)), (answer, end)
            kinds_of_answers["end"] += 1
        else:
            assert len(sample.answer.split(" ")) > 5
            kinds_of_answers["more"] += 1
    assert kinds_of_answers["end"] and (kinds_of_answers["gist"] or kind == "skimmed_repeated")


def test_both_sides_have_the_same_texts_and_ways():
    """Facts are hidden on both sides, and the share of chats is about the same: neither tells the category."""
    for name in HAYSTACKS:
        chats, facts, in_front = Counter(), Counter(), Counter()
        for side in ("told", "skimmed"):
            for index in range(30):
                sample = make(f"{side}_{name}", index=index, target_tokens=1200)
                chats[side] += sample.is_chat
                facts[side] += has_fact(sample.context)
                in_front[side] += sample.is_chat and sample.question in told_module.CLOSINGS
        assert facts == {"told": 30, "skimmed": 30}
        assert in_front["told"] and not in_front["skimmed"], "what routers cannot see should read everything"
        assert abs(chats["told"] - chats["skimmed"]) <= 12 and 15 <= chats["told"] <= 29


def has_fact(text):
    return any(re.search(f"{as_form(r.beginning)} {as_form(r.answer)}", text) for r in TRAINED)


def test_chats_are_nearly_half_of_the_sensitive_samples():
    sensitive = [kind for kind, row in TRAINED_KINDS.items() if row.category == "sensitive"]
    chats = [make(kind, index=i, target_tokens=1200).is_chat for kind in sensitive for i in range(16)]
    assert 0.35 <= sum(chats) / len(chats) <= 0.5


def test_splits_share_no_word_number_or_wording():
    for relation in TRAINED:
        drawn = {split: {fill_marks(relation, draw).answer for _ in range(30)} for split in ("train", "heldout")
                 for draw in [draw_of(split)]}  # fmt: skip
        assert not drawn["train"] & drawn["heldout"], relation
    for split, relations in {"train": TRAINED, "heldout": TRAINED, "heldout_format": UNTRAINED}.items():
        samples = [make("told_prose", index=i, split=split, target_tokens=1200) for i in range(30)]
        assert all(find_relation(sample, relations) for sample in samples)
        has_last = [told_module.CLOSINGS[-1] in s.question or "One thing is left" in s.question for s in samples]
        assert any(has_last) == (split == "heldout_format")


def test_relations_are_well_made():
    assert len(TRAINED) >= 30 and len({r.beginning for r in (*TRAINED, *UNTRAINED, *VALIDATION)}) == 47
    for relation in (*TRAINED, *UNTRAINED, *VALIDATION):
        for _, _, name, _ in MARK.findall(relation.beginning + relation.question + relation.answer):
            assert not name or name in WORDS, name
        assert relation.question.endswith("?") and "{" in relation.answer
        assert "{" not in fill_marks(relation, draw_of("train")).sentence
    trained, checked = ({m[2] for r in group for m in MARK.findall(r.beginning + r.question + r.answer) if m[2]}
                        for group in ((*TRAINED, *UNTRAINED), VALIDATION))  # fmt: skip
    assert not trained & checked and trained | checked == set(WORDS)
    assert all(take_split(words, True) and len(set(words)) == len(words) for words in WORDS.values())


def test_comments_and_repetitions_go_round():
    text = draw_comments(draw_of("train"), 500).text
    assert "import " not in text.split("\n")[0] and len(text.split("\n")) > 10
    lines = HAYSTACKS["repeated"](draw_of("train"), 800).text.split("\n")
    assert 2 <= len(set(lines[:-1])) <= 6 and Counter(lines).most_common(1)[0][1] > 5


def test_texts_that_hold_every_answer_are_named(monkeypatch):
    monkeypatch.setattr(told_module, "draw_body", lambda draw, *_: draw.prose(500))
    with pytest.raises(DataError, match="'told_prose' hold 20 drawn answers already; use other texts"):
        make("told_prose")


class ChatTokenizer(FakeTokenizer):
    """With a chat template."""

    chat_template = "chat"


def test_validation_asks_freely_what_training_has_not():
    suite = open_suite("validation")
    assert suite.tasks == ("validation_comments", "validation_repeated") and suite.count_samples("x", None) == 100
    for sample in suite.build("validation_repeated", range(8), length=1024, seed=1, tokenizer=ChatTokenizer()):
        assert isinstance(sample, SuiteSample) and not sample.target_ids and sample.max_new_tokens == 32
        (answer,) = sample.answers
        assert sample.prompt.count(answer.strip()) == 1
        assert suite.score(Answer(text=f"It is {answer.strip().upper()}.", token_ids=()), sample) == 1
        assert suite.score(Answer(text="I do not know.", token_ids=()), sample) == 0


def test_pairs_are_asked_by_their_name():
    suite = open_suite("pairs")
    (sample,) = suite.build("skimmed_table", [0], length=1024, seed=1, tokenizer=ChatTokenizer())
    assert suite.tasks == tuple(PAIRS) and sample.category == "robust" and sample.target_ids
    assert suite.score(Answer(text="", token_ids=sample.target_ids), sample) == 1
