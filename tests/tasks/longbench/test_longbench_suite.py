"""Official records become samples: prompts, cutting, chat rule, groups; faulty ones are named."""

import json
import re

import pytest
from reversible_tokenizer import ReversibleTokenizer

from elastic_attention.errors import DataError
from elastic_attention.tasks.longbench.catalog import TASKS, load_prompts
from elastic_attention.tasks.longbench.cutting import cut_middle, fit_prompt
from elastic_attention.tasks.longbench.multiple_choice import MultipleChoiceSuite
from elastic_attention.tasks.longbench.suite import LongBenchSuite
from elastic_attention.tasks.suite import Answer, Skipped, SuiteSample, check_tasks, open_suite

CONTEXT = " ".join(f"w{i}" for i in range(300))
CHOICE = {
    "_id": "1",
    "domain": "Single-Document QA",
    "difficulty": "easy",
    "length": "short",
    "question": " Which? ",
    "choice_A": "one",
    "choice_B": "two",
    "choice_C": "three",
    "choice_D": "four",
    "answer": "B",
    "context": CONTEXT,
}


def record(**changes):
    base = {"input": "Who {is} it?", "context": CONTEXT, "answers": ["Mary"], "length": 4000, "all_classes": None}
    return base | changes


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def build(suite, task, tokenizer=None, length=2000, count=None):
    indexes = range(suite.count_samples(task, count))
    return list(suite.build(task, indexes, length=length, seed=0, tokenizer=tokenizer or ReversibleTokenizer()))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_prompt_and_rules(tmp_path, task):
    answers, classes = ["Paragraph 3 段落3"], ["Food", "Date"]
    write(tmp_path / f"{task}.jsonl", record(answers=answers, all_classes=classes))
    suite = open_suite("longbench", data=tmp_path)
    (sample,) = build(suite, task)
    row = TASKS[task]
    said = load_prompts()[task].replace("{context}", CONTEXT).replace("{input}", "Who {is} it?")
    assert sample.prompt == (f"<user>\n{said}\n<assistant>\n" if row.is_chat else said)
    assert (sample.prompt_ids[0] == 0) is not row.is_chat  # plain prompts begin with the special token
    assert (sample.category, sample.answers, sample.max_new_tokens) == (
        row.category,
        tuple(answers),
        row.max_new_tokens,
    )
    assert sample.groups == {} and (sample.details == {"all_classes": classes}) is (row.metric == "classification")
    assert (sample.stop, sample.min_new_tokens) == ((("\n",), 1) if task == "samsum" else ((), 0))


def test_models_without_a_chat_template_read_plain_prompts(tmp_path):
    write(tmp_path / "qasper.jsonl", record())
    (sample,) = build(LongBenchSuite("longbench", data=tmp_path), "qasper", ReversibleTokenizer(chat_template=None))
    assert sample.prompt.startswith("You are given a scientific article") and sample.prompt_ids[0] == 0


@pytest.mark.parametrize("length", [2000, 301, 300, 137])
@pytest.mark.parametrize("task", ["hotpotqa", "lcc"])
def test_prompts_fit_and_lose_their_middle(tmp_path, task, length):
    write(tmp_path / f"{task}.jsonl", record())
    (sample,) = build(LongBenchSuite("longbench", data=tmp_path), task, length=length)
    used = len(sample.prompt_ids) + sample.max_new_tokens
    assert used <= length
    if length < 2000:
        assert used >= length - 3 and "w150" not in sample.prompt
        assert sample.prompt.count("ext line of code" if task == "lcc" else "Answer:") == 1


def test_a_record_without_room_is_skipped_by_name(tmp_path):
    write(tmp_path / "gov_report.jsonl", record())
    suite = LongBenchSuite("longbench", data=tmp_path)
    (skipped,) = build(suite, "gov_report", length=520)
    assert isinstance(skipped, Skipped)
    form = r"gov_report.jsonl, line 1: --lengths 520 is too short for gov_report; ask for (\d+) or more."
    least = int(re.fullmatch(form, skipped.reason)[1])
    assert isinstance(build(suite, "gov_report", length=least)[0], SuiteSample)


def test_official_cutting():
    """LongBench: two halves, special token counted. LongBench-v2: one token more of an odd number, decoded as one."""
    tokenizer, text = ReversibleTokenizer(), " a b c d e f g h"
    assert cut_middle(text, 9, tokenizer) == text
    assert cut_middle(text, 8, tokenizer) == " a b c e f g h"
    assert cut_middle(text, 7, tokenizer) == " a b f g h"
    assert cut_middle(text, 7, tokenizer, is_joined=True) == " a b e f g h"
    kept = fit_prompt(text, tokenizer, task="t", length=100, max_new_tokens=9, is_chat=False, max_prompt_tokens=16)
    assert kept[0] == text


def test_official_limit_of_the_prompt(tmp_path):
    write(tmp_path / "lcc.jsonl", record())
    suite = open_suite("longbench", data=tmp_path, max_prompt_tokens=100)
    (sample,) = build(suite, "lcc")
    assert 97 <= len(sample.prompt_ids) <= 100
    assert suite.describe()["max_prompt_tokens"] == 100
    for wrong in (0, "many"):
        with pytest.raises(DataError, match=f"max_prompt_tokens={wrong!r} must be a number of tokens, 16"):
            open_suite("longbench-e", data=tmp_path, max_prompt_tokens=wrong)


def test_longbench_e_has_its_own_files_and_buckets(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [record(length=n) for n in (3999, 4000, 7999, 8000)]
    write(tmp_path / "data" / "hotpotqa_e.jsonl", *rows)
    suite = open_suite("longbench-e", data=tmp_path)
    samples = build(suite, "hotpotqa")
    assert [s.groups["bucket"] for s in samples] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert [s.index for s in build(suite, "hotpotqa", count=2)] == [0, 1]
    assert (
        len(suite.tasks) == 13
        and "musique" not in suite.tasks
        and list(suite.describe()["files"]) == ["hotpotqa_e.jsonl"]
    )


def test_the_best_reference_counts_and_only_the_first_line_of_some_tasks(tmp_path):
    write(tmp_path / "qasper.jsonl", record(answers=["no", "Mary Smith"]))
    write(tmp_path / "triviaqa.jsonl", record(answers=["Mary Smith"]))
    suite = LongBenchSuite("longbench", data=tmp_path)
    for task, score in (("qasper", 0.8), ("triviaqa", 1.0)):
        (sample,) = build(suite, task)
        assert suite.score(Answer(text="\nMary Smith\nPassage", token_ids=()), sample) == pytest.approx(score)
        assert suite.score(Answer(text="", token_ids=()), sample) == 0.0


FAULTS = {
    "{half": "line 1: no JSON",
    "[1]": "line 1: a list instead of a record",
    json.dumps({"input": "", "context": ""}): "line 1: the key 'answers' is missing",
    json.dumps(record(answers=[])): "line 1: 'answers' must be texts, one at least, and is \\[\\]",
    json.dumps(record(context=None)): "line 1: 'context' is NoneType",
    json.dumps(record(answers=["Section 3"])): "line 1: the answer 'Section 3' must name a number",
    "[" * 100_000: "line 1: no JSON \\(nested too deeply\\)",
    '{"length": ' + "9" * 5000 + "}": "line 1: no JSON \\(Exceeds the limit",
    json.dumps(record(context="half \ud800")): "line 1: a text holds '.ud800', half of a letter",
}


@pytest.mark.parametrize("line", FAULTS)
def test_faulty_records_are_named_and_the_rest_goes_on(tmp_path, line):
    write(tmp_path / "passage_retrieval_en.jsonl", line, "", record(answers=["Paragraph 3"]))
    suite = LongBenchSuite("longbench", data=tmp_path)
    suite.check(["passage_retrieval_en"])
    faulty, good = build(suite, "passage_retrieval_en")
    assert isinstance(faulty, Skipped) and faulty.index == 0 and good.index == 1
    assert re.search(f"^passage_retrieval_en.jsonl, {FAULTS[line]}.*; repair or remove it.$", faulty.reason)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    """Editors of Windows put it at the start of a file."""
    (tmp_path / "qasper.jsonl").write_text(json.dumps(record()), encoding="utf-8-sig")
    (sample,) = build(LongBenchSuite("longbench", data=tmp_path), "qasper")
    assert not isinstance(sample, Skipped)


def test_classes_must_be_there(tmp_path):
    write(tmp_path / "trec.jsonl", record(), record(all_classes=["Food", 3]))
    first, second = build(LongBenchSuite("longbench", data=tmp_path), "trec")
    assert "'all_classes' is NoneType" in first.reason and "'all_classes' must be texts" in second.reason


@pytest.mark.parametrize("classes", [5, [1], "", {}])
def test_other_tasks_do_not_look_at_classes(tmp_path, classes):
    write(tmp_path / "qasper.jsonl", record(all_classes=classes))
    (sample,) = build(LongBenchSuite("longbench", data=tmp_path), "qasper")
    assert not isinstance(sample, Skipped)


def test_missing_and_empty_files_are_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="needs official files; name the folder that holds narrativeqa.jsonl"):
        check_tasks(open_suite("longbench"), [])
    with pytest.raises(DataError, match="holds no trec.jsonl; put the file there"):
        check_tasks(open_suite("longbench", data=tmp_path), ["trec"])
    write(tmp_path / "trec.jsonl", "nonsense")
    with pytest.raises(DataError, match="trec.jsonl holds no record"):
        check_tasks(open_suite("longbench", data=tmp_path), ["trec"])
    (tmp_path / "lcc.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="lcc.jsonl cannot be read"):
        check_tasks(open_suite("longbench", data=tmp_path), ["lcc"])
    with pytest.raises(DataError, match="has no task quality"):
        check_tasks(open_suite("longbench", data=tmp_path), ["quality"])


# LongBench-v2 ------------------------------------------------------------------------------------------------------


def test_multiple_choice(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([CHOICE, CHOICE | {"difficulty": "hard", "length": "long"}]))
    suite = open_suite("longbench-v2", data=tmp_path)
    first, second = build(suite, "multiple_choice")
    assert first.prompt.endswith(
        "What is the correct answer to this question: Which?\nChoices:\n(A) one\n(B) two\n(C) three\n(D) four\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".\n<assistant>\n'
    )
    assert (first.groups, first.category) == ({"difficulty": "easy", "length": "short"}, "Single-Document QA")
    assert (second.groups, second.max_new_tokens) == ({"difficulty": "hard", "length": "long"}, 128)
    for text, score in {"The correct answer is (B).": 1, "**The correct answer is B**": 1, "(B)": 0, "": 0}.items():
        assert suite.score(Answer(text=text, token_ids=()), first) == score
    assert suite.describe()["max_prompt_tokens"] == 120_000
    (cut, _) = build(suite, "multiple_choice", length=300)
    assert len(cut.prompt_ids) + 128 <= 300 and cut.prompt.endswith('here)".\n<assistant>\n')


def test_faulty_choices_are_named(tmp_path):
    rows = [CHOICE | {"answer": "E"}, CHOICE | {"difficulty": "odd"}, {}, 3, CHOICE]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    *faulty, good = build(MultipleChoiceSuite("longbench-v2", data=tmp_path / "data.json"), "multiple_choice")
    assert [f.reason.split("; ")[0] for f in faulty] == [
        "data.json, record 1: 'answer' is 'E', not one of A, B, C, D",
        "data.json, record 2: 'difficulty' is 'odd', not one of easy, hard",
        "data.json, record 3: the key 'context' is missing",
        "data.json, record 4: a int instead of a record",
    ]
    assert good.answers == ("B",)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.json").write_text("{}")
    with pytest.raises(DataError, match="data.json cannot be read .a dict instead of a list"):
        MultipleChoiceSuite("longbench-v2", data=tmp_path / "data").check(["multiple_choice"])
