"""The tasks of a suite and an attached model for lm-evaluation-harness, so that its scores can stand beside ours.

folder = export_tasks(suite, plan, tokenizer, "tasks")
results = lm_eval.simple_evaluate(
    model=wrap_model(model, tokenizer), tasks=list_task_names(suite, plan),
    task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, DataError
from ..records import write_file
from ..tasks.suite import Answer, Skipped, Suite, SuiteSample, has_chat_template, open_suite
from .asking import cut_at_stop
from .plan import EvalPlan

# The harness reads functions from Python files beside its YAML.
SCORING = "from elastic_attention.evaluation.harness import score_document\n"


def wrap_model(model: Any, tokenizer: Any, *, batch_size: int = 1) -> Any:
    """An `lm_eval` model that generates with `model`, attached or not, from the tokens that our runner would feed.

    Raises:
        BackendUnavailable: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise BackendUnavailable(f"lm-evaluation-harness is missing ({error}); pip install lm-eval.") from error
    # A chat template writes the special tokens itself, and so do `export_tasks`'s plain prompts beside one.
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        add_bos_token=False if has_chat_template(tokenizer) else None,
    )


def name_task(suite: Suite, task: str, length: int) -> str:
    """The harness's name of a task at a length."""
    return f"elastic_{suite.name}_{task}_{length}".replace("-", "_")


def list_task_names(suite: Suite, plan: EvalPlan) -> list[str]:
    """The harness's names of all tasks of a plan."""
    return [name_task(suite, task, length) for length in plan.lengths for task in plan.tasks]


def export_tasks(suite: Suite, plan: EvalPlan, tokenizer: Any, folder: str | Path) -> Path:
    """Write a YAML task and its samples for every task and length of a plan; returns the folder.

    Samples that cannot be made are left out, as by our runner.

    Raises:
        DataError: a task gives its answers to the model, which the harness cannot do.
    """
    target = Path(folder).absolute()
    write_file(target / "scoring.py", SCORING)
    for length in plan.lengths:
        for task in plan.tasks:
            indexes = range(suite.count_samples(task, plan.samples))
            built = suite.build(task, indexes, length=length, seed=plan.seed, tokenizer=tokenizer)
            samples = [sample for sample in built if not isinstance(sample, Skipped)]
            if samples:
                prompts = [write_marks(sample, tokenizer) for sample in samples]
                _write_task(suite, name_task(suite, task, length), samples, prompts, target)
    return target


def write_marks(sample: SuiteSample, tokenizer: Any) -> str:
    """The prompt, with the special tokens written out that a tokenizer with a chat template puts before a plain one.

    The harness is told to add none, because most prompts of such a tokenizer are conversations.
    """
    if not has_chat_template(tokenizer):
        return sample.prompt
    bare = list(tokenizer(sample.prompt, add_special_tokens=False)["input_ids"])
    marks = sample.prompt_ids[: max(0, len(sample.prompt_ids) - len(bare))]
    return f"{tokenizer.decode(marks)}{sample.prompt}" if marks else sample.prompt


def score_document(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """What the harness calls for an answer: the suite's own score."""
    fields = json.loads(document["sample"])
    sample = SuiteSample(**(fields | {key: tuple(fields[key]) for key in _TUPLES}))
    # The harness passes no tokens; a first token that must be there is a letter at least.
    text = cut_at_stop(results[0], sample.stop, min(sample.min_new_tokens, 1))
    return {"score": _open_once(document["suite"]).score(Answer(text=text, token_ids=()), sample)}


_TUPLES = ("prompt_ids", "answers", "stop", "target_ids")


@lru_cache(maxsize=8)
def _open_once(name: str) -> Suite:
    return open_suite(name)


def _write_task(suite: Suite, name: str, samples: Sequence[SuiteSample], prompts: Sequence[str], folder: Path) -> None:
    first, data = samples[0], folder / f"{name}.jsonl"
    if first.target_ids:
        raise DataError(f"{name} gives the answer to the model and asks for its next tokens; run it with our runner.")
    rows = [
        {
            "suite": suite.name,
            "prompt": prompt,
            "answers": list(sample.answers),
            "sample": json.dumps(asdict(sample) | {"prompt": "", "prompt_ids": []}),
        }
        for sample, prompt in zip(samples, prompts, strict=True)
    ]
    write_file(data, "".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": "answers",
        "generation_kwargs": {
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": first.max_new_tokens,
            "until": [],
            **({"min_new_tokens": first.min_new_tokens} if first.min_new_tokens else {}),
        },
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    # JSON is YAML; the function needs a tag that JSON has not.
    body = json.dumps(settings, indent=1)[:-2]
    write_file(folder / f"{name}.yaml", f'{body},\n "process_results": !function scoring.score_document\n}}\n')
