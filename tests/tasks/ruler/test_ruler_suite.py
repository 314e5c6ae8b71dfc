import json
import math
import re

import pytest
from word_tokenizer import WordTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks.ruler import haystack, questions
from elastic_attention.tasks.ruler.counting import zeta
from elastic_attention.tasks.ruler.draft import find_size
from elastic_attention.tasks.ruler.niah import hide_in_sentences
from elastic_attention.tasks.ruler.suite import TASKS, RulerSuite
from elastic_attention.tasks.suite import Answer, SuiteSample, check_tasks, open_suite

CHAT, PLAIN = WordTokenizer(), WordTokenizer(has_chat=False)
LENGTHS = (1500, 6000)


@pytest.fixture(scope="module")
def suite():
    return open_suite("ruler")


def build(suite, task, *indexes, length=1500, tokenizer=CHAT, seed=3):
    return list(suite.build(task, indexes or (0,), length=length, seed=seed, tokenizer=tokenizer))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prefix", ["assistant", "user"])
@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
def test_one_more_unit_would_not_fit(task, prefix, tokenizer):
    suite = RulerSuite("ruler", prefix=prefix)
    for length in LENGTHS:
        (sample,) = build(suite, task, length=length, tokenizer=tokenizer)
        draft = suite.draft(task, 0, length=length, seed=3, tokenizer=tokenizer)
        more = suite.render(draft, sample.details["units"] + 1, tokenizer)[1]
        assert len(sample.prompt_ids) + sample.max_new_tokens <= length < len(more) + sample.max_new_tokens


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_stands_in_the_text_and_scores_one(suite, task):
    for sample in build(suite, task, 0, 1, 7):
        assert all(answer in sample.prompt for answer in sample.answers)
        assert suite.score(Answer(text="well: " + ", ".join(sample.answers), token_ids=()), sample) == 1.0
        assert suite.score(Answer(text="", token_ids=()), sample) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_its_own_index_alone(suite, task):
    together = build(suite, task, 2, 0)
    assert together == [*build(suite, task, 2), *build(suite, task, 0)]
    assert together[0].prompt != together[1].prompt
    assert build(suite, task, 0, seed=4)[0].prompt != together[1].prompt or task.startswith("qa")


def test_where_the_answer_begins():
    (behind,) = build(RulerSuite("ruler"), "niah_single_1")
    (inside,) = build(RulerSuite("ruler", prefix="user"), "niah_single_1")
    assert re.search(r"text\?</user>\n<assistant>\n The special magic number for \S+ mentioned .* is$", behind.prompt)
    assert re.search(r"text\? The special magic number for \S+ mentioned .* is</user>\n<assistant>\n$", inside.prompt)
    (plain,) = build(RulerSuite("ruler"), "niah_single_1", tokenizer=PLAIN)
    assert re.search(r"text\? The special magic number for \S+ mentioned .* is$", plain.prompt)


def test_needles_are_as_many_as_the_knobs_say(suite):
    keys = {"niah_multikey_1": 4, "niah_multiquery": 4, "niah_single_2": 1, "niah_multivalue": 1}
    for task, count in keys.items():
        (sample,) = build(suite, task)
        found = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", sample.prompt)
        assert len({key for key, _ in found}) == count
        assert len(found) == (4 if task == "niah_multivalue" else count)
    (sample,) = build(suite, "niah_multikey_3")
    assert len(re.findall(r"for \S{36} is: \S{36}\.", sample.prompt)) == sample.details["units"] + 1


def test_chains_and_their_example(suite):
    (sample,) = build(suite, "vt")
    example, text = sample.prompt.split("\n\nMemorize and track", 1)
    names = sample.answers
    assert len(names) == 5 and text.index(f"VAR {names[1]} = VAR {names[0]}") < text.index(f"VAR {names[2]} =")
    assert re.search(r"they are:  [A-Z]{3}( [A-Z]{3}){4}$", example)
    assert sample.prompt.endswith("they are: ")


@pytest.mark.parametrize(("length", "times"), [(2000, (6, 1)), (6000, (30, 3))])
def test_common_words_are_common(suite, length, times):
    (sample,) = build(suite, "cwe", length=length)
    listed = re.findall(r"\d+\. (\S+)", sample.prompt.rsplit("Below is", 1)[1])
    counts = {word: listed.count(word) for word in listed}
    assert {counts[word] for word in sample.answers} == {times[0]}
    assert {count for word, count in counts.items() if word not in sample.answers} == {times[1]}


def test_frequent_words_are_the_most_frequent(suite):
    (sample,) = build(suite, "fwe", length=6000)
    words = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split()
    ranked = sorted(set(words), key=words.count, reverse=True)
    assert ranked[0] == "..." and ranked[1:4] == list(sample.answers) and {len(word) for word in ranked[1:]} == {6}
    shares = [words.count(word) / sample.details["units"] for word in ranked[:4]]
    assert shares == pytest.approx([0.6079 / k**2 for k in range(1, 5)], abs=0.01)


def test_the_sum_of_the_frequencies():
    assert [zeta(2.0), zeta(4.0)] == pytest.approx([math.pi**2 / 6, math.pi**4 / 90], rel=1e-14)
    with pytest.raises(ValueError, match="above 1"):
        zeta(1.0)


def test_needles_stand_at_their_depth_and_nothing_is_lost():
    assert hide_in_sentences(list("abcd"), ["X", "Y", "Z"], [0, 50, 100]) == "X a b Y c d Z"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1, 30, 150])
def test_a_length_without_room_is_named_with_one_that_works(suite, task, length):
    for index, sample in enumerate(build(suite, task, *range(4), length=length)):
        if length == 150 and isinstance(sample, SuiteSample):
            continue  # some questions are short
        form = rf"--lengths {length} is too short for {task}; ask for (\d+) or more."
        assert sample.index == index and (found := re.fullmatch(form, sample.reason)), sample.reason
        assert isinstance(build(suite, task, index, length=int(found[1]))[0], SuiteSample)


def test_an_example_that_no_length_helps_is_named(suite, monkeypatch):
    monkeypatch.setattr("elastic_attention.tasks.ruler.tracking.EXAMPLE_TOKENS", 20)
    (skipped,) = build(suite, "vt")
    assert skipped.reason == "The example of vt takes more than 20 tokens of this tokenizer."


# Data of its own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path):
    """A folder with small files in the official forms."""
    words = " ".join(f"Word{i} goes on. " for i in range(400))
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": words}))
    paragraphs = [
        {
            "context": f"Paragraph {i} says red{i}.",
            "qas": [
                {
                    "question": f"What says {i}?",
                    "answers": [{"text": f"red{i}"}, {"text": "red"}],
                    "is_impossible": False,
                },
                {"question": "Never?", "answers": [], "is_impossible": True},
            ],
        }
        for i in range(40)
    ]
    squad = {"data": [{"paragraphs": paragraphs[:20]}, {"paragraphs": paragraphs[20:]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    hotpot = [
        {
            "question": f"Who {i}?",
            "answer": f"she{i}",
            "context": [[f"T{i}-{j}", [f"It is she{i}. ", "Yes."]] for j in range(10)],
        }
        for i in range(5)
    ]
    (tmp_path / "hotpotqa.json").write_text(json.dumps(hotpot))
    return tmp_path


def test_official_files_replace_the_stand_ins(suite, official):
    assert set(suite.substitutes) == {
        "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "qa_1", "qa_2"
    }  # fmt: skip
    own = open_suite("ruler", data=official)
    assert own.substitutes == {} and len(own.describe()["files"]) == 3
    assert own.describe() != suite.describe()
    assert "Word399" in build(own, "niah_single_2", length=4000)[0].prompt
    assert own.count_samples("qa_1", None) == 40 and own.count_samples("qa_2", 3) == 3
    (first, last) = build(own, "qa_1", 0, 39, length=300)
    assert first.answers == ("red0", "red") and "Paragraph 39 says red39." in last.prompt
    numbers = {int(n) for n in re.findall(r"Paragraph (\d+)", first.prompt)}
    assert 0 in numbers and numbers < set(range(20)), "paragraphs of the same article come first"
    (two,) = build(own, "qa_2", length=400)
    assert all(f"T0-{j}\nIt is she0. Yes." in two.prompt for j in range(10))


def test_short_essays_and_few_documents_go_round(official):
    own = open_suite("ruler", data=official)
    (essay,) = build(own, "niah_single_2", length=8000)
    assert essay.prompt.count("Word7 goes") > 1
    (question,) = build(own, "qa_1", length=3000)
    assert question.prompt.count("Paragraph 3 says") > 1


@pytest.mark.parametrize("file", ["PaulGrahamEssays.json", "squad.json", "hotpotqa.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", '{"data": [{}]}', '{"text": "short"}', "[{}]", "null", "[" * 100_000, '{"text": "\\ud800"}']
)
def test_malformed_files_are_named_before_anything_runs(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(file)):
        check_tasks(open_suite("ruler", data=tmp_path), ())


def test_bad_requests_are_named(tmp_path, suite):
    with pytest.raises(DataError, match="no folder"):
        check_tasks(open_suite("ruler", data=tmp_path / "none"), ())
    with pytest.raises(DataError, match=r"qa_9.*niah_single_1"):
        check_tasks(suite, ("qa_1", "qa_9"))
    with pytest.raises(DataError, match=r"'rule'.*ruler"):
        open_suite("rule")
    with pytest.raises(DataError, match="prefix='system'"):
        open_suite("ruler", prefix="system")


def test_words_that_are_not_installed_are_named(suite, monkeypatch):
    monkeypatch.setattr("elastic_attention.tasks.ruler.words.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"wonderwords.*pip install"):
        check_tasks(suite, ("niah_single_1",))


def test_stand_ins_can_be_answered_from_their_documents():
    for dataset in ("squad", "hotpotqa"):
        library = questions.load_library(dataset, None, None)
        assert len(library.questions) >= 20
        for asked in library.questions:
            assert any(asked.answers[0] in library.documents[i] for i in asked.needed)


def test_sentences_end_where_text_does():
    hay = haystack.Haystack(tuple(["It", "is", "so.", "And", '"why?"', "Ask", "v.", "2", "of", "it."]))
    assert hay.take_sentences(9) == ["It is so.", 'And "why?"', "Ask v.", "2 of"]
    assert hay.take_sentences(13)[-2:] == ["2 of it.", "It is so."]


@pytest.mark.parametrize("limit", [9, 10, 11, 640, 1001, 77_777])
@pytest.mark.parametrize(
    "cost", [lambda n: 5 + n, lambda n: 3 * n + n // 7, lambda n: n + 40 * (n > 50), lambda n: 1 + n // 9]
)
def test_the_search_finds_the_edge(limit, cost):
    calls = []
    size = find_size(lambda n: calls.append(n) or cost(n), smallest=1, limit=limit)
    assert cost(size) <= limit < cost(size + 1)
    assert len(calls) <= 40
