"""The almanac: a suite in the shape of LongBench from data that can be installed, under a name of its own.

Six categories, LongBench's metrics, texts that training never sees: addresses of presidents, facts about countries,
Python's own library. Its scores compare with each other and with no published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.corpora_suite import CorporaSuite, with_marks
from elastic_attention.tasks.document_questions import make_bridge, make_collection, make_comparison, make_report_line
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.few_shot import REGIONS, make_classes, make_regions
from elastic_attention.tasks.lengths import TooShort
from elastic_attention.tasks.longbench import almanac_tasks as own
from elastic_attention.tasks.longbench.metrics import METRICS
from elastic_attention.tasks.registry import MIN_TOKENS, make_sample
from elastic_attention.tasks.sample import Sample, Tokenizer
from elastic_attention.tasks.suite import Answer, SuiteSample, render_prompt
from elastic_attention.tasks.summaries import make_module_lines, make_overviews
from elastic_attention.tasks.vocabulary import CLASSES

MAX_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AlmanacTask:
    """A task: its category, metric, longest answer, maker, and the classes of a classification."""

    category: str
    metric: str
    max_new_tokens: int
    make: Callable[[Draw, str, str], Sample]
    classes: tuple[str, ...] = ()


def _task(category: str, metric: str, longest: int, make: Callable[..., Sample], *classes: str) -> AlmanacTask:
    return AlmanacTask(category=category, metric=metric, max_new_tokens=longest, make=make, classes=classes)


TASKS: dict[str, AlmanacTask] = {
    "stated_fact": _task("single_qa", "qa_f1", 32, own.make_stated_fact),
    "report_line": _task("single_qa", "qa_f1", 64, make_report_line),
    "bridge": _task("multi_qa", "qa_f1", 32, make_bridge),
    "comparison": _task("multi_qa", "qa_f1", 32, make_comparison),
    "collection": _task("multi_qa", "qa_f1", 64, make_collection),
    "overviews": _task("summarization", "rouge", 512, make_overviews),
    "module_lines": _task("summarization", "rouge", 256, make_module_lines),
    "classes": _task("few_shot", "classification", 16, make_classes, *sorted(CLASSES)),
    "regions": _task("few_shot", "classification", 16, make_regions, *REGIONS),
    "paragraph_count": _task("synthetic", "count", 32, own.make_paragraph_count),
    "paragraph_retrieval": _task("synthetic", "retrieval", 32, own.make_paragraph_retrieval),
    "next_line": _task("code", "code_sim", 64, own.make_next_line),
    "next_line_of_project": _task("code", "code_sim", 64, own.make_next_line_of_project),
}


class AlmanacSuite(CorporaSuite):
    """The almanac; prompt and answer of a sample fill its length.

    Args:
        data: folder of `tasks.corpora`; None takes the small texts in the package.
        split: "heldout_format" (texts and wordings that training never sees) or "heldout" (texts alone).
    """

    tasks = tuple(TASKS)
    headline = tuple(TASKS)
    default_lengths: tuple[int, ...] = (4096, 8192)
    default_split = "heldout_format"
    default_samples = 100

    def find_least_length(self, task: str) -> int:
        """That of `generate`, beside the longest answer."""
        return MIN_TOKENS + TASKS[task].max_new_tokens

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """LongBench's metric of the task."""
        row = TASKS[sample.task]
        return METRICS[row.metric](answer.text, sample.answers[0], row.classes)

    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        row = TASKS[task]
        limit = room = length - row.max_new_tokens
        for _ in range(MAX_TRIES):
            drawn = make_sample(
                task,
                row.category,
                row.make,
                seed=seed,
                index=index,
                target_tokens=room,
                corpora=load_corpora(self.data),
                tokenizer=with_marks(tokenizer),
                split=self.split,
            )
            text = f"{drawn.context}\n\n{drawn.question}" if drawn.is_chat else drawn.context + drawn.question
            prompt, ids = render_prompt(tokenizer, text, answer_prefix=drawn.answer_prefix, is_chat=drawn.is_chat)
            if len(ids) <= limit:
                break
            room -= len(ids) - limit  # special tokens that the tokenizer puts in front
        else:
            raise TooShort(f"{len(ids)} tokens do not fit {limit}.", len(ids) - limit)
        return SuiteSample(
            task=task,
            index=index,
            length=length,
            category=row.category,
            prompt=prompt,
            prompt_ids=tuple(ids),
            answers=(drawn.answer if row.category == "code" else drawn.answer.strip(),),
            max_new_tokens=row.max_new_tokens,
            stop=("\n",) if row.category == "few_shot" else (),
        )
