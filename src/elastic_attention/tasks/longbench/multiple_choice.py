"""LongBench-v2 from the official file: four choices, answered in words (not by log-likelihood)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_attention.tasks.longbench.catalog import CHOICES, load_prompts
from elastic_attention.tasks.longbench.files import find_fault
from elastic_attention.tasks.longbench.record_suite import RecordSuite
from elastic_attention.tasks.suite import Answer, SuiteSample

MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 120_000, 128
TEXTS = ("context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer", "domain")
GROUPS = {"difficulty": ("easy", "hard"), "length": ("short", "medium", "long")}


class MultipleChoiceSuite(RecordSuite):
    """LongBench-v2 as its official code runs it without a chain of thought, except that decoding is greedy.

    Args:
        data: `data.json`, or the folder that holds it.
        max_prompt_tokens: as in `RecordSuite`; 120,000 in the official code.
    """

    tasks: tuple[str, ...] = ("multiple_choice",)
    source = "data.json of the data set THUDM/LongBench-v2"
    is_joined = True

    def __init__(self, name: str, *, data: Path | None, max_prompt_tokens: int | None = MAX_PROMPT_TOKENS) -> None:
        super().__init__(name, data=data, max_prompt_tokens=max_prompt_tokens)

    def file_names(self, task: str) -> tuple[str, ...]:
        """The official file, or the same records as lines."""
        return "data.json", "data.jsonl"

    def find_fault(self, task: str, record: dict[str, Any]) -> str | None:
        """Missing keys, or a group or letter that does not exist."""
        fault = find_fault(record, **dict.fromkeys((*TEXTS, *GROUPS), str))
        if fault is not None:
            return fault
        for key, known in (GROUPS | {"answer": tuple("ABCD")}).items():
            if record[key] not in known:
                return f"{key!r} is {record[key]!r}, not one of {', '.join(known)}"
        return None

    def write_prompt(self, task: str, record: Mapping[str, Any]) -> str:
        """The official prompt without chain of thought."""
        prompt = load_prompts()[CHOICES]
        places = {"$DOC$": "context", "$Q$": "question"} | {f"$C_{letter}$": f"choice_{letter}" for letter in "ABCD"}
        for mark, key in places.items():  # one after the other, as in the official code
            prompt = prompt.replace(mark, record[key].strip())
        return prompt

    def describe_sample(self, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Answer and groups of a sample; means are taken by domain, difficulty and length."""
        return {
            "category": record["domain"],
            "answers": (record["answer"],),
            "max_new_tokens": MAX_NEW_TOKENS,
            "groups": {key: record[key] for key in GROUPS},
        }

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 for the right letter, 0 for another one or none."""
        return float(find_letter(answer.text.strip()) == sample.answers[0])


def find_letter(response: str) -> str | None:
    """The letter that a response gives as its answer, or None; asterisks are ignored, brackets preferred."""
    plain = response.replace("*", "")
    patterns = r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"
    found = next(filter(None, (re.search(pattern, plain) for pattern in patterns)), None)
    return found[1] if found else None
