"""Settings of suites as a command line has them: all are texts, and some of them mean numbers."""

import pickle

import pytest

from elastic_attention.errors import DataError, DownloadError
from elastic_attention.tasks.lengths import TooShort, check_least_lengths
from elastic_attention.tasks.suite import check_tasks, open_suite


@pytest.mark.parametrize(
    ("suite", "key", "text", "value"),
    [
        ("ruler", "corpora", "2024", "2024"),
        ("gsm8k", "shots", "2", 2),
        ("aime24", "max_new_tokens", "30000", 30000),
        ("longbench", "max_prompt_tokens", "100", 100),
        ("longbench-v2", "max_prompt_tokens", "100", 100),
    ],
)
def test_a_text_is_a_number_where_the_suite_wants_one(suite, key, text, value):
    assert getattr(open_suite(suite, **{key: text}), key) == value
    assert getattr(open_suite(suite, **{key: value}), key) == value


@pytest.mark.parametrize("text", ["many", "-1", "9" * 5000, ""])
def test_what_is_no_number_is_refused_by_name(text):
    with pytest.raises(DataError, match=r"shots='?.* must be a number of solved problems"):
        open_suite("gsm8k", shots=text)


def test_a_folder_may_have_a_number_for_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match="^2024 is no complete corpora folder"):
        check_tasks(open_suite("ruler", corpora="2024"), ("qa_1",))


def test_lengths_that_no_task_can_have_are_refused():
    suite = open_suite("almanac")
    check_least_lengths(suite, ("bridge",), (544, 0, -5))
    check_least_lengths(open_suite("ruler"), ("vt",), (1,))
    check_least_lengths(suite, suite.tasks, ())
    with pytest.raises(DataError, match=r"^--lengths 128, 512: too short. Ask for 544 or more for bridge; 1,024 or "):
        check_least_lengths(suite, ("bridge", "overviews"), (4096, 512, 128))
    with pytest.raises(DataError, match=r"^--lengths 600: too short. Ask for 1,024 or more for overviews; or leave"):
        check_least_lengths(suite, ("bridge", "overviews"), (600,))


def test_what_is_missing_survives_another_process():
    error = pickle.loads(pickle.dumps(TooShort("too short", 7)))
    assert isinstance(error, TooShort) and (str(error), error.missing) == ("too short", 7)
