"""LongBench's tasks: what each asks, how it is scored, how long an answer may be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBenchTask:
    """One task as the official code treats it.

    Attributes:
        category: one of the benchmark's six kinds of work.
        metric: a name of `metrics.METRICS`.
        max_new_tokens: the longest answer.
        is_chat: the prompt is the user's turn of a conversation, where the model has a chat template.
        is_first_line: only the first line of an answer is scored.
        is_extended: LongBench-E holds it.
    """

    category: str
    metric: str
    max_new_tokens: int
    is_chat: bool
    is_first_line: bool
    is_extended: bool


# Name, metric, longest answer; the official order. Prompts without chat template, tasks of which the first line
# counts, and tasks of LongBench-E are listed below.
_TABLE = {
    "single_qa": "narrativeqa qa_f1 128, qasper qa_f1 128, multifieldqa_en qa_f1 64, multifieldqa_zh qa_f1_zh 64",
    "multi_qa": "hotpotqa qa_f1 32, 2wikimqa qa_f1 32, musique qa_f1 32, dureader rouge_zh 128",
    "summarization": "gov_report rouge 512, qmsum rouge 512, multi_news rouge 512, vcsum rouge_zh 512",
    "few_shot": "trec classification 64, triviaqa qa_f1 32, samsum rouge 128, lsht classification 64",
    "synthetic": "passage_count count 32, passage_retrieval_en retrieval 32, passage_retrieval_zh retrieval_zh 32",
    "code": "lcc code_sim 64, repobench-p code_sim 64",
}
_PLAIN = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
_FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}
_NOT_EXTENDED = {"narrativeqa", "musique", "qmsum", "lsht"}

TASKS: dict[str, LongBenchTask] = {
    name: LongBenchTask(
        category=category,
        metric=metric,
        max_new_tokens=int(longest),
        is_chat=name not in _PLAIN,
        is_first_line=name in _FIRST_LINE,
        is_extended=name not in _NOT_EXTENDED and not metric.endswith("_zh"),
    )
    for category, row in _TABLE.items()
    for name, metric, longest in (item.split() for item in row.split(", "))
}
CHOICES = "choices"


@lru_cache(maxsize=1)
def load_prompts() -> dict[str, str]:
    """The official prompts: task -> text with {context} and {input}; `CHOICES` -> that of LongBench-v2."""
    text = (files("elastic_attention.tasks") / "texts" / "longbench_prompts.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    return {**stored["prompts"], CHOICES: stored["choices"]}
