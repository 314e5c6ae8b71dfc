"""Everyday facts: sizes, answers, and that nothing of them is in what routers are trained on."""

import re
from dataclasses import replace

import pytest
from fake_tokenizer import FakeTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.counting import NominalTokenizer
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.everyday.suite import CHAT, EverydaySuite, read_units
from elastic_attention.tasks.everyday.wordings import REPEATED, WORDINGS
from elastic_attention.tasks.mixture import MIXTURE
from elastic_attention.tasks.registry import ALL_KINDS, make_sample
from elastic_attention.tasks.relations import TRAINED, UNTRAINED, VALIDATION, WORDS
from elastic_attention.tasks.sample import prompt_text
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample, open_suite


class ChatTokenizer(FakeTokenizer):
    """With a chat template, and a mark in front of plain prompts."""

    chat_template = "chat"

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [0] * add_special_tokens + self.encode(text)}


class PlainTokenizer(ChatTokenizer):
    """A base model's."""

    chat_template = None


SUITE = EverydaySuite("everyday")
TOKENIZER = ChatTokenizer()


def build(task, indexes=range(8), *, length=1024, seed=1, tokenizer=TOKENIZER, suite=SUITE):
    return list(suite.build(task, indexes, length=length, seed=seed, tokenizer=tokenizer))


@pytest.mark.parametrize("task", SUITE.tasks)
def test_the_answer_stands_once_where_neither_sink_nor_window_shows_it(task):
    for sample in build(task, length=2048):
        (answer,) = sample.answers
        assert sample.prompt.lower().count(answer.lower()) == 1
        place = len(TOKENIZER.encode(sample.prompt[: sample.prompt.index(answer)]))
        assert 64 < place < len(sample.prompt_ids) - 512
        assert sample.prompt.endswith("<assistant>\n") == ("<user>" in sample.prompt) == task.endswith(CHAT)
        assert SUITE.score(Answer(text=f" It is {answer.upper()}, I think.", token_ids=()), sample) == 1
        assert SUITE.score(Answer(text=f" It is {answer[:-1]}", token_ids=()), sample) == 0
        assert SUITE.score(Answer(text="", token_ids=()), sample) == 0


@pytest.mark.parametrize("task", SUITE.tasks)
@pytest.mark.parametrize("length", [700, 2048])
def test_one_more_unit_would_not_fit(task, length):
    for sample in build(task, [0, 5], length=length):
        draft = SUITE.draft(task, sample.index, length=length, seed=1)
        sizes = [
            len(SUITE.render(task, draft, sample.details["units"] + more, TOKENIZER)[1]) + sample.max_new_tokens
            for more in (0, 1)
        ]
        assert sizes[0] == len(sample.prompt_ids) + sample.max_new_tokens <= length < sizes[1]


@pytest.mark.parametrize("task", SUITE.tasks)
def test_a_sample_depends_on_its_own_index_alone(task):
    first, second = build(task, [3, 11])
    assert [second] == build(task, [11]) and first.groups == second.groups == {"fact": "meeting"}
    assert first.prompt != second.prompt and build(task, [3], seed=2)[0].prompt != first.prompt
    assert build(task, [3], length=1025)[0].prompt != first.prompt


def test_thousands_of_facts():
    facts = {sample.answers + (sample.prompt[-60:],) for sample in build("lines", range(2000), length=300)}
    assert len(facts) > 1000


def test_training_sees_none_of_it():
    """No beginning, question or repeated line occurs in training samples; texts are those held out."""
    texts = [text for wording in WORDINGS.values() for text in (wording.sentence, wording.question)]
    texts += [line for lines in REPEATED for line in lines]
    forms = [re.compile(re.sub(r"\\\{\d\\\}", ".{1,30}", re.escape(text))) for text in texts]
    assert len(forms) > 30 and forms[0].search("The key of the big shed lies under the mat.")
    makers = {kind: row.make for kind, row in ALL_KINDS.items()}
    makers |= {task: make for tasks in MIXTURE.values() for task, make in tasks.items()}
    for task, make in makers.items():
        for index in range(3):
            for split in ("train", "heldout_format"):
                told = prompt_text(
                    make_sample(
                        task, "any", make, seed=index, index=index, target_tokens=2048, corpora=load_corpora(),
                        tokenizer=NominalTokenizer(), split=split,
                    ),
                    NominalTokenizer(),
                )  # fmt: skip
                assert not [form for form in forms if form.search(told)], task
    trained = [d.text for d in take_split(load_corpora().prose, is_heldout=False)]
    assert not [unit for unit in read_units("prose", None) if len(unit) > 120 and any(unit in t for t in trained)]


def test_training_has_neither_its_words_nor_its_relations():
    """No choice of a word list, name or phrase, is one of those that the told kinds draw from."""
    lists = [
        choices for w in WORDINGS.values() for choices in (*w.about, *w.answer) if not choices.startswith("range:")
    ]
    own = {choice.lower() for choices in lists for choice in choices.split("|")}
    told = {word.lower() for words in WORDS.values() for word in words}
    assert len(own) > 90 and len(told) > 200 and not own & told
    plain = [re.sub(r"\W*\{[^}]*\}\W*", "*", text) for w in WORDINGS.values() for text in (w.sentence, w.question)]
    for relation in (*TRAINED, *UNTRAINED, *VALIDATION):
        for text in (relation.beginning, relation.question):
            assert re.sub(r"\W*\{[^}]*\}\W*", "*", text) not in plain


def test_without_a_chat_template_all_prompts_are_plain():
    (sample,) = build("prose_chat", [0], tokenizer=PlainTokenizer())
    assert isinstance(sample, SuiteSample) and sample.prompt.endswith("lie?") and "<user>" not in sample.prompt


def test_what_is_wrong_is_named(monkeypatch):
    (skipped,) = build("document", [3], length=20)
    assert isinstance(skipped, Skipped)
    found = re.fullmatch(r"--lengths 20 is too short for document; ask for (\d+) or more.", skipped.reason)
    assert isinstance(build("document", [3], length=int(found[1]))[0], SuiteSample)
    with pytest.raises(DataError, match="has no option split; it has none"):
        open_suite("everyday", split="heldout")
    # Answers that the haystack holds are drawn again, and named where there is no other.
    monkeypatch.setattr("elastic_attention.tasks.everyday.suite.REPEATED", (("From Lucerne to Tartu.", "Tofu again."),))
    monkeypatch.setitem(WORDINGS, "pet", replace(WORDINGS["pet"], answer=("Tofu",)))
    pet, *trips = build("lines", [6, *range(7, 160, 8)])
    assert isinstance(pet, Skipped) and "answers of 'pet' already; use other texts" in pet.reason
    assert len({trip.answers for trip in trips}) > 4 and not {("Lucerne",), ("Tartu",)} & {t.answers for t in trips}


def test_it_is_asked_by_its_name():
    suite = open_suite("everyday")
    assert isinstance(suite, EverydaySuite) and suite.count_samples("lines", None) == 100
    assert suite.tasks == ("lines", "lines_chat", "prose", "prose_chat", "document", "document_chat")
    assert suite.describe()["split"] == "heldout_format" and suite.substitutes == {}
