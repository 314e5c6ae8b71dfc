"""LongBench and LongBench-E from the official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_attention.tasks.longbench.catalog import TASKS, load_prompts
from elastic_attention.tasks.longbench.chinese import load_jieba
from elastic_attention.tasks.longbench.files import find_fault
from elastic_attention.tasks.longbench.metrics import METRICS
from elastic_attention.tasks.longbench.record_suite import RecordSuite
from elastic_attention.tasks.suite import Answer, SuiteSample

# The official code ends answers to samsum at a newline, but no answer is empty.
STOPS = {"samsum": ("\n",)}


class LongBenchSuite(RecordSuite):
    """The 21 tasks of LongBench, or the 13 of LongBench-E under the name "longbench-e".

    Args:
        data: folder with `TASK.jsonl`, or `TASK_e.jsonl` for LongBench-E; the unpacked official archive.
        max_prompt_tokens: as in `RecordSuite`; 31,500 for the benchmark's models with 32K of context.
    """

    source = "data.zip of the data set THUDM/LongBench"

    def __init__(self, name: str, *, data: Path | None, max_prompt_tokens: int | None = None) -> None:
        super().__init__(name, data=data, max_prompt_tokens=max_prompt_tokens)
        self.is_extended = name == "longbench-e"
        self.tasks = tuple(task for task, row in TASKS.items() if row.is_extended or not self.is_extended)

    def file_names(self, task: str) -> tuple[str, ...]:
        """One name a task."""
        return (f"{task}_e.jsonl" if self.is_extended else f"{task}.jsonl",)

    def is_chat(self, task: str) -> bool:
        """All tasks but few-shot learning and code completion."""
        return TASKS[task].is_chat

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DataError when a file is missing or holds nothing, or jieba is missing for a Chinese task."""
        super().check(tasks)
        if any(TASKS[task].metric in ("qa_f1_zh", "rouge_zh") for task in tasks):
            load_jieba()

    def find_fault(self, task: str, record: dict[str, Any]) -> str | None:
        """Missing keys, no answers, or answers that the task's metric cannot read."""
        metric = TASKS[task].metric
        kinds: dict[str, type] = {"input": str, "context": str, "answers": list}
        kinds |= {"length": int} if self.is_extended else {}
        kinds |= {"all_classes": list} if metric == "classification" else {}
        if (fault := find_fault(record, **kinds)) is not None:
            return fault
        answers = record["answers"]
        # What the other metrics do not read may be anything, and is no list in every file.
        for key in ("answers", "all_classes") if metric == "classification" else ("answers",):
            texts = record[key]
            if not texts or not all(isinstance(text, str) for text in texts):
                return f"{key!r} must be texts, one at least, and is {texts!r}"
        if metric.startswith("retrieval"):
            try:
                score_answer("", task, answers)
            except ValueError as error:
                return str(error).rstrip(".")
        return None

    def write_prompt(self, task: str, record: Mapping[str, Any]) -> str:
        """The official prompt."""
        return load_prompts()[task].format(**record)

    def describe_sample(self, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Answers and rules of a sample; LongBench-E groups by length."""
        row = TASKS[task]
        return {
            "category": row.category,
            "answers": tuple(record["answers"]),
            "max_new_tokens": row.max_new_tokens,
            "min_new_tokens": int(task in STOPS),
            "stop": STOPS.get(task, ()),
            "groups": {"bucket": name_bucket(record["length"])} if self.is_extended else {},
            "details": {"all_classes": record["all_classes"]} if row.metric == "classification" else {},
        }

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """The best score over the references, as the official code counts it."""
        return score_answer(answer.text, sample.task, sample.answers, sample.details.get("all_classes", ()))


def score_answer(text: str, task: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Score in [0, 1] of what a model said to one record of `task`: the best one over the references.

    Raises:
        KeyError: an unknown task.
        ValueError: a reference of a retrieval task names no number.
    """
    row = TASKS[task]
    said = text.lstrip("\n").split("\n")[0] if row.is_first_line else text
    return max(METRICS[row.metric](said, answer, classes) for answer in answers)


def name_bucket(num_words: int) -> str:
    """The length group of a LongBench-E record, from the words of its context."""
    return "0-4k" if num_words < 4000 else "4-8k" if num_words < 8000 else "8k+"
