"""The wording against lm-evaluation-harness 0.4.13 (harness.json), and against an installed one where there is one."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import read_harness

from elastic_attention.tasks.ruler import templates
from elastic_attention.tasks.ruler.suite import TASKS

STORED = json.loads(Path(__file__).with_name("harness.json").read_text(encoding="utf-8"))
# Ours -> theirs. The authors' own words are ours: a space in front of answers that the harness strips when it writes a
# sample, and a slip of the pen that the authors have mended since.
ALLOWED = {
    templates.NIAH.answer_prefix: "The special magic {} for {} mentioned in the provided text are",
    templates.NIAH_SINGLE.answer_prefix: "The special magic {} for {} mentioned in the provided text is",
    templates.VARIABLES.answer_prefix: (
        " Answer: According to the chain(s) of variable assignment in the text above, {} variables are assgined the "
        "value {}, they are: "
    ),
    templates.QUESTION.answer_prefix: "Answer:",
}
NAMES = {"type_needle_v": "kind", "i": "number", "document": "text", "num_v": "count"}
OWN = {"vt": "VARIABLES", "cwe": "COMMON_WORDS", "fwe": "FREQUENT_WORDS", "qa": "QUESTION"}


def rename(text):
    """Theirs with our names of the fields."""
    return re.sub(r"\{(\w+)\}", lambda found: f"{{{NAMES.get(found[1], found[1])}}}", text)


def forget_names(text):
    return re.sub(r"\{\w*\}", "{}", text)


def to_singular(text):
    """What both the authors and the harness do to the plural wording."""
    for plural, single in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(plural, single)
    return text


def list_pairs(theirs):
    """(name, ours, theirs) of every string."""
    niah = theirs["niah"]
    yield "niah", templates.NIAH.text, rename(niah["template"])
    yield "niah single", templates.NIAH_SINGLE.text, to_singular(rename(niah["template"]))
    yield "niah prefix", templates.NIAH.answer_prefix, niah["prefixes"][0]
    yield "niah single prefix", templates.NIAH_SINGLE.answer_prefix, niah["prefixes"][1]
    yield "needle", templates.NEEDLE, rename(niah["needle"])
    yield "noise", templates.NOISE, niah["noise"]
    yield "document", templates.DOCUMENT, rename(theirs["qa"]["document"])
    for task, name in OWN.items():
        own = getattr(templates, name)
        yield task, own.text, rename(theirs[task]["template"])
        yield f"{task} prefix", own.answer_prefix, theirs[task]["prefix"]


def list_differences(theirs):
    return {ours: forget_names(other) for _, ours, other in list_pairs(theirs) if ours != rename(other)}


def test_differences_to_the_harness_are_the_allowed_ones():
    assert list_differences(STORED) == ALLOWED


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_installed_harness():
    installed = read_harness(Path(find_spec("lm_eval").origin).parent)
    assert list_differences(installed) == ALLOWED and installed == STORED


def test_longest_answers_and_knobs():
    longest = STORED["longest"]
    found = {"vt": "vt", "cwe": "cwe", "fwe": "fwe", "qa_squad": "qa_1", "niah_single_1": "niah_multivalue"}
    assert {theirs: TASKS[ours].template.max_new_tokens for theirs, ours in found.items()} == longest
    names = {"repeat": "noise"}
    for task, knobs in STORED["niah"]["knobs"].items():
        own = TASKS[task].knobs
        assert own.haystack == names.get(knobs["type_haystack"], knobs["type_haystack"])
        assert (own.key, own.value) == (knobs["type_needle_k"], knobs["type_needle_v"])
        wanted = (knobs.get("num_needle_k", 1), knobs.get("num_needle_v", 1), knobs.get("num_needle_q", 1))
        assert (own.num_keys, own.num_values, own.num_queries) == wanted


def test_the_reader_of_the_harness_sees_a_change(tmp_path):
    """A test of the test."""
    changed = json.loads(json.dumps(STORED))
    changed["cwe"]["template"] = changed["cwe"]["template"].replace("10", "ten")
    assert list_differences(changed) != ALLOWED
