"""GSM8K and AIME 2024: rules equal the published scorers, files are found and checked, prompts are whole."""

import json
from pathlib import Path

import pytest
from longbench_cases import digest
from problems_golden import make_answers
from reversible_tokenizer import ReversibleTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks.problems.rules import RULES, find_boxed, find_marked
from elastic_attention.tasks.suite import Answer, Skipped, check_tasks, open_suite

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_the_published_ones(rule):
    golden = GOLDEN[rule]
    for answer, reference, score in golden["cases"]:
        assert RULES[rule](answer, reference) == score, (answer, reference)
    scores = [float(RULES[rule](*case)) for case in make_answers(rule)]
    assert len(scores) == 10_000 and 500 < sum(scores) == golden["right"] < 9_500
    assert digest(scores) == golden["digests"]


def test_rules_on_answers_as_models_write_them():
    assert find_marked("18 eggs.\n#### 1,234") == "1234" and find_marked("The answer is 18.") is None
    assert RULES["last"]("So she pays $1,234.", "6 * 3\n#### 1234") and not RULES["last"]("", "#### 0")
    assert find_boxed("so $x=3$ and \\boxed{\\frac{1}{2}} or \\boxed{12") == "x=3"
    assert RULES["boxed"]("Thus $m+n = \\boxed{ 113 }$.", "113") and not RULES["boxed"]("", "113")


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def build(suite, length=2048):
    (task,) = check_tasks(suite, ())
    indexes = range(suite.count_samples(task, None))
    return list(suite.build(task, indexes, length=length, seed=0, tokenizer=ReversibleTokenizer()))


@pytest.fixture
def gsm8k(tmp_path):
    rows = [{"question": f"What is {n} and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(1, 5)]
    write(tmp_path / "train.jsonl", {"question": "broken"}, *rows[:2])
    write(tmp_path / "test.jsonl", *rows[2:], {"question": "?", "answer": "no number"}, "no JSON")
    return tmp_path


def test_gsm8k_asks_in_a_chat(gsm8k):
    suite = open_suite("gsm8k", data=gsm8k)
    first, second, *faulty = build(suite)
    assert first.prompt.startswith("<user>\nWhat is 3 and 3?\n\nSolve it") and second.answers[0].endswith("#### 8")
    assert suite.score(Answer(text="3 + 3 = 6\n#### 6", token_ids=()), first) == 1.0
    assert suite.score(Answer(text="It is 6.", token_ids=()), first) == 0.0
    assert [f"{f.reason}" for f in faulty] == [
        "test.jsonl, line 3: 'answer' ends in no '#### NUMBER'; repair or remove it.",
        "test.jsonl, line 4: no JSON (Expecting value: line 1 column 1 (char 0)); repair or remove it.",
    ]
    lenient = build(open_suite("gsm8k", data=gsm8k / "test.jsonl", rule="last"))[0]
    # The sample brings its rule, because the harness scores it with a suite that has no options.
    assert suite.score(Answer(text="It is 6.", token_ids=()), lenient) == 1.0


def test_gsm8k_needs_a_number(tmp_path):
    write(tmp_path / "test.jsonl", {"question": "?", "answer": "#### ,"})
    (sample,) = build(open_suite("gsm8k", data=tmp_path))
    assert isinstance(sample, Skipped) and "ends in no '#### NUMBER'" in sample.reason


def test_gsm8k_behind_solved_problems(gsm8k):
    suite = open_suite("gsm8k", data=gsm8k / "test.jsonl", shots=2)
    first = build(suite)[0]
    assert first.prompt == (
        "Question: What is 1 and 1?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: What is 2 and 2?\nAnswer: 2 + 2 = 4\n#### 4"
        "\n\nQuestion: What is 3 and 3?\nAnswer:"
    )
    assert first.stop == ("Question:",) and suite.describe()["solved"]["train.jsonl"]
    with pytest.raises(DataError, match=r"holds 2 solved problems, not 3"):
        check_tasks(open_suite("gsm8k", data=gsm8k, shots=3), ())


def test_aime24_reads_any_spelling_of_its_keys(tmp_path):
    write(tmp_path / "aime_2024.jsonl", {"Problem": "Find m+n.", "Answer": 25}, {"problem": "?", "answer": "1000"})
    suite = open_suite("aime24", data=tmp_path, max_new_tokens=100)
    good, bad = build(suite)
    assert good.prompt.startswith("<user>\nFind m+n.\n\nPlease reason") and good.answers == ("25",)
    assert suite.score(Answer(text="It is \\boxed{25}.", token_ids=()), good) == 1.0
    assert isinstance(bad, Skipped) and "'1000', no whole number from 0 to 999" in bad.reason
    assert suite.describe()["max_new_tokens"] == 100


@pytest.mark.parametrize(("answer", "number"), [("025", "25"), ("000", "0"), (7, "7")])
def test_zeros_in_front_of_a_reference_do_not_count(tmp_path, answer, number):
    """Some files write all answers with three digits, and models do not."""
    write(tmp_path / "aime24.jsonl", {"problem": "?", "answer": answer})
    suite = open_suite("aime24", data=tmp_path, max_new_tokens=100)
    (sample,) = build(suite)
    assert suite.score(Answer(text=f"\\boxed{{{number}}}", token_ids=()), sample) == 1.0


@pytest.mark.parametrize("answer", ["", "1000", "\u0663", "1" * 5000, 1.5, None, True, -1])
def test_an_answer_that_is_no_number_is_named(tmp_path, answer):
    write(tmp_path / "aime24.jsonl", {"problem": "?", "answer": answer}, {"problem": " ", "answer": "025"})
    wrong, empty = build(open_suite("aime24", data=tmp_path))
    assert "line 1: 'answer' is" in wrong.reason and "line 2: 'problem' is empty" in empty.reason


def test_a_problem_is_never_cut(gsm8k):
    suite = open_suite("gsm8k", data=gsm8k, max_new_tokens=100)
    size = len(build(suite)[0].prompt_ids) + 100
    assert not isinstance(build(suite, length=size)[0], Skipped)
    short = build(suite, length=size - 1)[0]
    assert isinstance(short, Skipped)
    assert f"--lengths {size - 1} is too short for gsm8k; ask for {size} or more, or for a smaller max" in short.reason


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gsm8k", {}, "test.jsonl.*openai/grade-school-math.*question.*####"),
        ("aime24", {}, "aime24.jsonl.*30 problems.*problem.*Maxwell-Jia"),
        ("gsm8k", {"rule": "first"}, "rule='first'.*marked or last"),
        ("gsm8k", {"shots": -1}, "shots=-1"),
        ("aime24", {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, name, options, words):
    for data in (tmp_path, None):
        with pytest.raises(DataError, match=words):
            check_tasks(open_suite(name, data=data, **options), ())
