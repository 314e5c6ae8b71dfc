"""What is read from a file of answers, and how a file that somebody damaged is told from another version's."""

import dataclasses
import json

import pytest

from elastic_attention import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Line, read_answers, read_lines

LINES = [
    Line(method="dense", task="plain", length=80, index=index, score=1.0, groups={"parity": "even"}, answer="ü 7")
    for index in range(4)
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers-0-of-1.jsonl"


def write(path, *texts, end=""):
    path.write_text("".join(f"{text}\n" for text in texts) + end)


def dump(line, **changes):
    return json.dumps(dataclasses.asdict(line) | changes)


def test_lines_are_what_was_written(path):
    write(path, *map(dump, LINES), end='{"method": "dense", "ta')
    assert read_lines(path) == LINES and list(read_answers(path.parent).values()) == LINES
    write(path, dump(LINES[0], score=1, groups=None, esr_prefill=None, esr_decode=0.5))
    assert (read_lines(path)[0].score, read_lines(path)[0].esr_decode) == (1, 0.5)
    write(path, '{"method": "dense", "task": "plain", "length": 80, "index": 0, "skipped": "why"}')
    assert read_lines(path)[0].skipped == "why", "keys that came later have defaults"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (dump(LINES[1])[:40], "Unterminated|Expecting"),
        ("", "Expecting value"),
        ("no JSON", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[]", "no table of keys"),
        (dump(LINES[1], score="high"), "score is 'high'"),
        (dump(LINES[1], score=7.0), r"score is 7.0, it is from 0 to 1"),
        (dump(LINES[1], score=float("nan")), "score is nan"),
        (dump(LINES[1], score=None), "score is None"),
        (dump(LINES[1], index=True), "index is True"),
        (dump(LINES[1], index=1.0), "index is 1.0"),
        (dump(LINES[1], routes=[[1, 0]]), r"routes is \[\[1, 0\]\]"),
        (dump(LINES[1], groups={"parity": 2}), "groups is"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(path, text, words):
    write(path, dump(LINES[0]), text, dump(LINES[2]))
    with pytest.raises(
        ElasticAttentionError, match=f"answers-0-of-1.jsonl, line 2 is damaged: .*({words}).*Remove"
    ) as e:
        read_lines(path)
    assert "version" not in str(e.value) and len(str(e.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("text", "words"),
    [(dump(LINES[1], colour="red"), "knows no 'colour'"), ('{"method": "dense", "task": "plain"}', "needs 'index'")],
)
def test_another_version_is_no_damage(path, text, words):
    write(path, dump(LINES[0]), text)
    with pytest.raises(ElasticAttentionError, match=f"line 2 was written by another version: this one {words}") as e:
        read_answers(path.parent)
    assert "--output" in str(e.value) and "damaged" not in str(e.value)
