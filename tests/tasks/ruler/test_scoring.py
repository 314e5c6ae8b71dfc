import json

import pytest
from golden_scores import CASES, GOLDEN, digest_cases, make_cases

from elastic_attention.tasks.ruler.scoring import match_all, match_part


def test_ten_thousand_cases_score_as_the_official_scorer_says():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["cases"] == digest_cases(), "the cases have changed; make the golden file again"
    cases = list(make_cases())
    assert len(cases) == CASES == len(golden["all"]) == len(golden["part"])
    for name, score in (("all", match_all), ("part", match_part)):
        found = [round(100 * round(100 * score(*case), 2)) for case in cases]
        assert found == golden[name], name


@pytest.mark.parametrize("answer", ["", " ", "\x00", "\n\n"])
def test_an_empty_answer_has_a_score(answer):
    assert match_all(answer, ["a", "b"]) == match_part(answer, ["a", "b"]) == 0.0


def test_one_reference_is_enough_only_where_it_is():
    assert match_all("The RED one", ["red", "blue"]) == 0.5
    assert match_part("The RED one", ["red", "blue"]) == 1.0
