"""Scores equal those of the official code, to the last bit."""

import hashlib
import sys

import pytest
from longbench_cases import METRICS as NAMES
from longbench_cases import digest, make_cases, make_records, make_responses

from elastic_attention.errors import DataError
from elastic_attention.tasks.longbench import chinese, metrics
from elastic_attention.tasks.longbench.catalog import CHOICES, TASKS, load_prompts
from elastic_attention.tasks.longbench.metrics import METRICS, score_retrieval
from elastic_attention.tasks.longbench.multiple_choice import find_letter
from elastic_attention.tasks.longbench.rouge import score_rouge_l
from elastic_attention.tasks.longbench.suite import name_bucket, score_answer


def need_jieba(name):
    if name in ("qa_f1_zh", "rouge_zh"):
        pytest.importorskip("jieba")


@pytest.mark.parametrize("name", NAMES)
def test_metrics_equal_the_official_ones(golden, name):
    need_jieba(name)
    for prediction, answer, classes, score in golden["metrics"][name]["cases"]:
        assert METRICS[name](prediction, answer, classes) == score, (prediction, answer)
    scores = [METRICS[name](*case) for case in make_cases(name)]
    assert digest(scores) == golden["metrics"][name]["digests"]
    assert len(scores) == 10_000 and len(set(scores)) > 5


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_scored_and_asked_as_in_the_official_code(golden, task):
    official, row = golden["tasks"][task], TASKS[task]
    prompt = hashlib.sha256(load_prompts()[task].encode()).hexdigest()
    found = (row.metric, prompt, row.max_new_tokens, row.is_chat, row.is_extended)
    assert found == tuple(official[key] for key in ("metric", "prompt", "max_new_tokens", "is_chat", "is_extended"))
    need_jieba(row.metric)
    scores, buckets = [], {name: [] for name in official["score_by_bucket"]}
    for record in make_records(task, row.metric):
        score = score_answer(record["prediction"], task, record["answers"], record["all_classes"])
        scores.append(score)
        buckets[name_bucket(record["length"])].append(score)
    assert round(100 * sum(scores) / len(scores), 2) == official["score"]
    assert {b: round(100 * sum(s) / len(s), 2) for b, s in buckets.items()} == official["score_by_bucket"]


def test_there_are_no_other_tasks(golden):
    assert set(TASKS) == set(golden["tasks"]) and len(TASKS) == 21
    assert sum(row.is_extended for row in TASKS.values()) == 13


def test_letters_are_found_as_in_the_official_code(golden):
    official = golden["choices"]
    assert hashlib.sha256(load_prompts()[CHOICES].encode()).hexdigest() == official["prompt"]
    assert [find_letter(response) for response, _ in official["cases"]] == [letter for _, letter in official["cases"]]
    assert digest([find_letter(response) for response in make_responses()]) == official["digests"]


def test_the_golden_scores_notice_a_wrong_metric(golden, monkeypatch):
    """A test of the tests: the quirks are decided by some cases."""
    cases = list(make_cases("classification", 500))

    def score_without_quirk(prediction, answer, classes):
        named = [c for c in classes if c in prediction]
        named = [c for c in named if c == answer or c not in answer]
        return 1.0 / len(named) if answer in named else 0.0

    wrong = digest([score_without_quirk(*case) for case in cases])[0]
    assert wrong != golden["metrics"]["classification"]["digests"][0]
    monkeypatch.setattr(metrics, "_PUNCTUATION", str.maketrans("", "", "."))
    wrong = digest([METRICS["qa_f1"](*case) for case in make_cases("qa_f1", 500)])[0]
    assert wrong != golden["metrics"]["qa_f1"]["digests"][0]


def test_long_sentences_have_their_true_score():
    words = " ".join(f"word{i}" for i in range(1200))
    assert score_rouge_l(words, words) == pytest.approx(1.0, abs=1e-7)


def test_an_answer_without_a_number_is_named():
    with pytest.raises(ValueError, match="'Section 3' must name a number as in 'Paragraph 3'"):
        score_retrieval("Paragraph 3", "Section 3")


def test_chinese_tasks_name_the_package_they_need(monkeypatch):
    chinese.load_jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match="need the package jieba: pip install"):
        METRICS["qa_f1_zh"]("北京", "北京", ())
    chinese.load_jieba.cache_clear()
