"""GSM8K and AIME 2024 as suites: solve a short problem in words, end in a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError
from elastic_attention.tasks.lengths import describe_least
from elastic_attention.tasks.longbench.files import digest_of, find_fault, find_file, load_records
from elastic_attention.tasks.longbench.record_suite import RecordSuite
from elastic_attention.tasks.problems.rules import RULES, find_marked
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Answer, SuiteSample, render_prompt

NEXT_QUESTION = "Question:"


class ProblemSuite(RecordSuite):
    """Records with a problem and its answer; see `Suite` for what its methods promise.

    Args:
        data: folder with the file, or the file itself.
        max_new_tokens: the longest answer.

    Attributes:
        request: what stands behind the problem, so that the answer ends as its rule wants it.
    """

    request: str

    def __init__(self, name: str, *, data: Path | None, max_new_tokens: int) -> None:
        super().__init__(name, data=data)
        if not (isinstance(max_new_tokens, int) and max_new_tokens > 0):
            raise DataError(f"max_new_tokens={max_new_tokens!r} must be a positive number of tokens.")
        self.max_new_tokens = max_new_tokens

    def describe(self) -> dict[str, Any]:
        """The file by checksum, and the longest answer."""
        return super().describe() | {"max_new_tokens": self.max_new_tokens}

    def fit(
        self, task: str, record: Mapping[str, Any], facts: Mapping[str, Any], length: int, tokenizer: Tokenizer
    ) -> tuple[str, list[int]]:
        """The prompt, whole: a problem that loses its middle is another problem."""
        prompt, ids = render_prompt(tokenizer, self.write_prompt(task, record), is_chat=self.is_chat(task))
        least = len(ids) + self.max_new_tokens
        if least > length:
            raise DataError(f"{describe_least(task, length, least)}, or for a smaller max_new_tokens.")
        return prompt, ids


class Gsm8kSuite(ProblemSuite):
    """GSM8K.

    Args:
        data: the folder with test.jsonl, and train.jsonl for `shots`; or test.jsonl itself.
        rule: "marked": the number behind "####", as its authors score; "last": the last number of the answer, the
            harness's "flexible" rule, for models that keep to no form.
        shots: solved problems before each one, the first ones of train.jsonl, as plain text; 0 asks in a chat.
        max_new_tokens: the longest answer.
    """

    tasks = ("gsm8k",)
    default_lengths = (2048,)
    source = 'test.jsonl of openai/grade-school-math, lines of {"question", "answer"}; answers end in "#### 72"'
    request = 'Solve it step by step. Then write "####", a space and the number alone on the last line.'

    def __init__(
        self, name: str, *, data: Path | None, rule: str = "marked", shots: int = 0, max_new_tokens: int = 512
    ) -> None:
        super().__init__(name, data=data, max_new_tokens=max_new_tokens)
        if rule not in ("marked", "last"):
            raise DataError(f"rule={rule!r} is unknown; use marked or last.")
        if not (isinstance(shots, int) and shots >= 0):
            raise DataError(f"shots={shots!r} must be a number of solved problems.")
        self.rule, self.shots = rule, shots

    def describe(self) -> dict[str, Any]:
        """Also the rule, and the solved problems by checksum of their file."""
        solved = {"train.jsonl": digest_of(self._find_solved())} if self.shots else {}
        return super().describe() | {"rule": self.rule, "shots": self.shots, "solved": solved}

    def file_names(self, task: str) -> tuple[str, ...]:
        """The official name."""
        return ("test.jsonl",)

    def is_chat(self, task: str) -> bool:
        """Solved problems make the form clear without a conversation."""
        return not self.shots

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DataError when a file is missing or holds too little."""
        super().check(tasks)
        self._read_solved()

    def find_fault(self, task: str, record: dict[str, Any]) -> str | None:
        """Missing keys, or an answer without its number."""
        fault = find_fault(record, question=str, answer=str)
        if fault is None and not record["question"].strip():
            return "'question' is empty"
        if fault is None and not re.search("[0-9]", find_marked(record["answer"]) or ""):
            return "'answer' ends in no '#### NUMBER'"
        return fault

    def write_prompt(self, task: str, record: Mapping[str, Any]) -> str:
        """The problem with a request, or behind solved ones."""
        if not self.shots:
            return f"{record['question']}\n\n{self.request}"
        solved = [f"{NEXT_QUESTION} {row['question']}\nAnswer: {row['answer']}\n\n" for row in self._read_solved()]
        return f"{''.join(solved)}{NEXT_QUESTION} {record['question']}\nAnswer:"

    def describe_sample(self, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The solution is the reference; behind solved problems an answer ends where the next question begins."""
        return {
            "category": "problems",
            "answers": (record["answer"],),
            "max_new_tokens": self.max_new_tokens,
            "stop": (NEXT_QUESTION,) if self.shots else (),
            "details": {"rule": self.rule},
        }

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 for the right number."""
        return float(RULES[sample.details["rule"]](answer.text, sample.answers[0]))

    def _find_solved(self) -> Path:
        folder = self.data.parent if self.data is not None and self.data.is_file() else self.data
        return find_file(folder, ("train.jsonl",), "train.jsonl of openai/grade-school-math")

    def _read_solved(self) -> list[dict[str, Any]]:
        if not self.shots:
            return []
        rows = [row for _, row in load_records(self._find_solved())]
        solved = [row for row in rows if isinstance(row, dict) and self.find_fault("", row) is None][: self.shots]
        if len(solved) < self.shots:
            raise DataError(f"train.jsonl holds {len(solved)} solved problems, not {self.shots}; ask for fewer shots.")
        return solved


class AimeSuite(ProblemSuite):
    """AIME 2024: thirty problems whose answers are whole numbers below 1,000, scored as lm-evaluation-harness does.

    Args:
        data: the file, or the folder that holds it.
        max_new_tokens: the longest answer; models that think at length want 30,000.
    """

    tasks = ("aime24",)
    source = 'the 30 problems as JSON lines of {"problem", "answer"}, such as the data set Maxwell-Jia/AIME_2024'
    request = "Please reason step by step, and put your final answer within \\boxed{}."

    def __init__(self, name: str, *, data: Path | None, max_new_tokens: int = 4096) -> None:
        super().__init__(name, data=data, max_new_tokens=max_new_tokens)

    def file_names(self, task: str) -> tuple[str, ...]:
        """Names in use; the competition publishes no file."""
        return "aime24.jsonl", "aime_2024.jsonl", "aime24.json", "aime_2024.json"

    def find_fault(self, task: str, record: dict[str, Any]) -> str | None:
        """Missing keys, or an answer that is none of 0 to 999."""
        fields = _lower_keys(record)
        fault = find_fault(fields, problem=str, answer=(str, int))
        if fault is None and not fields["problem"].strip():
            return "'problem' is empty"
        if fault is None and not re.fullmatch("[0-9]{1,3}", str(fields["answer"])):
            return f"'answer' is {fields['answer']!r:.40}, no whole number from 0 to 999"
        return fault

    def write_prompt(self, task: str, record: Mapping[str, Any]) -> str:
        """The problem with a request."""
        return f"{_lower_keys(record)['problem']}\n\n{self.request}"

    def describe_sample(self, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The number is the reference, without the zeros that some files have in front: the harness compares texts."""
        return {
            "category": "problems",
            "answers": (str(int(_lower_keys(record)["answer"])),),
            "max_new_tokens": self.max_new_tokens,
        }

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 for the right number."""
        return float(RULES["boxed"](answer.text, sample.answers[0]))


def _lower_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Data sets write "Problem" or "problem"."""
    return {key.lower(): value for key, value in record.items()}
