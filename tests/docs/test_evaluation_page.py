"""docs/evaluation.md names the suites and methods that there are."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from elastic_attention.evaluation.plan import parse_method
from elastic_attention.tasks.suite import SUITES

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_page_names_what_there_is():
    assert all(f"`{name}`" in PAGE for name in SUITES)
    table = PAGE.split("| Word | Meaning |")[1].split("\n\n")[0]
    words = [word for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\S+)`", cell)]
    assert len(words) > 10
    for word in words:
        parse_method(word)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_the_harness_has_what_the_page_uses():
    import lm_eval.tasks

    assert callable(lm_eval.simple_evaluate) and lm_eval.tasks.TaskManager
