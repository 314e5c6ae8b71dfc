"""Official question files with records that cannot be asked or scored."""

import json

import pytest
from word_tokenizer import WordTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks.suite import Answer, Skipped, check_tasks, open_suite

GOOD = {"question": "Who?", "answer": "she", "context": [["T", ["It is she.", " Yes."]], ["U", []]]}
ASKED = {"question": "Who?", "answers": [{"text": "she"}], "is_impossible": False}
WRONG_HOTPOTQA = {
    "'answer' is int": {"answer": 5},
    "the answer '' holds no letter or digit": {"answer": ""},
    "the answer ' .' holds no letter or digit": {"answer": " ."},
    "'question' is NoneType": {"question": None},
    "'question' is empty": {"question": " "},
    "'context' is str": {"context": "T"},
    "documents, one at least": {"context": []},
    "each a title": {"context": [["T"]]},
    "a list of sentences": {"context": [["T", [3]]]},
    "half of a letter": {"answer": "a\ud800"},
}
WRONG_SQUAD = {
    "'question' is int": {"question": 1},
    "'question' is empty": {"question": ""},
    "there is no answer": {"answers": []},
    "'answers' is str": {"answers": "she"},
    "a str instead of a record": {"answers": ["she"]},
    "'text' is int": {"answers": [{"text": "she"}, {"text": 5}]},
    "the answer '' holds": {"answers": [{"text": "she"}, {"text": ""}]},
    "'is_impossible' is str": {"is_impossible": "no"},
    "half of a letter": {"question": "\ud800?"},
}


def write_squad(folder, *articles):
    (folder / "squad.json").write_text(json.dumps({"data": list(articles)}))


def make_article(*questions, text="It is she."):
    return {"paragraphs": [{"context": text, "qas": list(questions)}]}


def build(folder, task):
    suite = open_suite("ruler", data=folder)
    assert check_tasks(suite, (task,)) == (task,)
    indexes = range(suite.count_samples(task, None))
    return suite, list(suite.build(task, indexes, length=400, seed=1, tokenizer=WordTokenizer()))


@pytest.mark.parametrize("fault", WRONG_HOTPOTQA)
def test_a_faulty_record_of_hotpotqa_is_skipped_by_name(tmp_path, fault):
    rows = [GOOD, GOOD | WRONG_HOTPOTQA[fault], GOOD | {"answer": "42"}]
    (tmp_path / "hotpotqa.json").write_text(json.dumps(rows))
    suite, (first, skipped, last) = build(tmp_path, "qa_2")
    assert isinstance(skipped, Skipped) and skipped.index == 1
    assert skipped.reason.startswith("hotpotqa.json, record 2: ") and fault in skipped.reason
    assert skipped.reason.endswith("repair or remove it.")
    assert (first.answers, last.answers) == (("she",), ("42",)) and "T\nIt is she. Yes." in first.prompt
    assert suite.score(Answer(text="She.", token_ids=()), first) == 1.0


def test_what_is_no_record_of_hotpotqa_is_skipped_by_name(tmp_path):
    (tmp_path / "hotpotqa.json").write_text(json.dumps(["text", GOOD]))
    _, (skipped, asked) = build(tmp_path, "qa_2")
    assert skipped.reason == "hotpotqa.json, record 1: a str instead of a record; repair or remove it."
    assert asked.index == 1


@pytest.mark.parametrize("fault", WRONG_SQUAD)
def test_a_faulty_question_of_squad_is_skipped_by_name(tmp_path, fault):
    impossible = {"question": "?", "answers": [], "is_impossible": True}
    write_squad(tmp_path, make_article(), make_article(ASKED, impossible, ASKED | WRONG_SQUAD[fault], ASKED))
    _, (first, skipped, last) = build(tmp_path, "qa_1")
    assert isinstance(skipped, Skipped) and fault in skipped.reason
    assert skipped.reason.startswith("squad.json, article 2, paragraph 1, question 3: ")
    assert first.answers == last.answers == ("she",)


@pytest.mark.parametrize(
    ("place", "article"),
    [
        ("article 1: the key 'paragraphs' is missing", {}),
        ("article 1: a list instead of a record", []),
        ("article 1, paragraph 1: 'context' is int", make_article(ASKED, text=5)),
        ("article 1, paragraph 1: 'context' is empty", make_article(ASKED, text=" ")),
        ("article 1, paragraph 1: a text holds", make_article(ASKED, text="\udfff")),
        ("article 1, paragraph 1: a NoneType instead of a record", {"paragraphs": [None]}),
        ("article 1, paragraph 1: the key 'qas' is missing", {"paragraphs": [{"context": "It is she."}]}),
    ],
)
def test_faulty_texts_of_squad_are_skipped_by_name(tmp_path, place, article):
    write_squad(tmp_path, article, make_article(ASKED))
    _, (skipped, asked) = build(tmp_path, "qa_1")
    assert skipped.reason.startswith(f"squad.json, {place}") and asked.answers == ("she",)


def test_a_file_without_a_question_that_can_be_asked_is_refused(tmp_path):
    (tmp_path / "hotpotqa.json").write_text(json.dumps([GOOD | {"answer": ""}]))
    write_squad(tmp_path)
    suite = open_suite("ruler", data=tmp_path)
    with pytest.raises(DataError, match=r"hotpotqa.json holds no question .* record 1: the answer '' holds no letter"):
        check_tasks(suite, ("qa_2",))
    with pytest.raises(DataError, match=r"squad.json holds no question .*: it is empty. Or take RULER's"):
        check_tasks(suite, ("qa_1",))


@pytest.mark.parametrize("task", ["qa_1", "niah_single_1"])
def test_a_folder_with_none_of_the_files_is_refused(tmp_path, task):
    (tmp_path / "squad_v2.json").write_text("{}")
    with pytest.raises(DataError, match=r"none of PaulGrahamEssays.json, squad.json, hotpotqa.json; .*--data"):
        check_tasks(open_suite("ruler", data=tmp_path), (task,))


def test_what_is_missing_beside_a_file_is_stood_in_for(tmp_path):
    write_squad(tmp_path, make_article(ASKED))
    suite = open_suite("ruler", data=tmp_path)
    check_tasks(suite, ())
    assert "qa_1" not in suite.substitutes and {"qa_2", "niah_single_2"} < set(suite.substitutes)
