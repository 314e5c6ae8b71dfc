"""What an evaluation asks: which tasks, how long, how many, by which methods, and in which batches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..tasks.suite import Suite
from .methods import Method, find_method, settle_method

MAX_ROWS = 256
MAX_QUESTIONS = 1_000_000
"""Prompts of a plan. All suites together have fewer; more are a mistake in typing, which would fill the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalPlan:
    """The questions of a run.

    Attributes:
        tasks, lengths: every task is asked at every length, in tokens of prompt and answer together.
        samples: of each task and length; None = as many as the suite has.
        methods: who answers; all of them get the same questions.
        seed: of the samples.
        batch_tokens: bound on rows * tokens of a batch. Part of what a run is, because a batch decides how sums round.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int | None
    methods: tuple[Method, ...]
    seed: int = 1
    batch_tokens: int = 0

    def __post_init__(self) -> None:
        labels = [method.label for method in self.methods]
        if not labels or len(labels) != len(set(labels)):
            raise ElasticAttentionError(
                f"methods {labels} must be one or more, each once; tell adapters apart by a target: routed@0.7=FOLDER."
            )

    def describe(self) -> dict[str, Any]:
        """As a record holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Questions of one task and length that are asked together."""

    task: str
    length: int
    indexes: tuple[int, ...]


def list_batches(plan: EvalPlan, suite: Suite) -> Iterator[Batch]:
    """All batches in the order of the run; what a batch holds does not depend on what was asked before.

    Those of a task and length have the same number of rows, or one less: kernels are compiled for few numbers of rows.

    Raises:
        ElasticAttentionError: the plan asks too much.
    """
    for length, task, count, parts in _list_cells(plan, suite):
        for part in range(parts):
            indexes = range(count * part // parts, count * (part + 1) // parts)
            yield Batch(task=task, length=length, indexes=tuple(indexes))


def count_batches(plan: EvalPlan, suite: Suite) -> int:
    """How many `list_batches` lists.

    Raises:
        ElasticAttentionError: the plan asks too much.
    """
    return sum(parts for *_, parts in _list_cells(plan, suite))


def _list_cells(plan: EvalPlan, suite: Suite) -> list[tuple[int, str, int, int]]:
    """(length, task, samples, batches) in the order of the run."""
    counts = {task: suite.count_samples(task, plan.samples) for task in plan.tasks}
    total = len(plan.lengths) * sum(counts.values())
    if total > MAX_QUESTIONS:
        samples = "all" if plan.samples is None else f"{plan.samples:,}"
        raise ElasticAttentionError(
            f"--samples {samples} of each task and length are {total:,} prompts; a run takes {MAX_QUESTIONS:,} at "
            "most. Ask for fewer."
        )
    return [
        (length, task, counts[task], -(-counts[task] // min(max(1, plan.batch_tokens // length), MAX_ROWS)))
        for length in plan.lengths
        for task in plan.tasks
    ]


def check_lengths(lengths: tuple[int, ...], context: int, model: str) -> None:
    """Refuse lengths that the model cannot read, or that are none, or named twice, which would count samples twice.

    Raises:
        ElasticAttentionError: names them and the model's limit.
    """
    if min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise ElasticAttentionError(
            f"--lengths {', '.join(f'{length:,}' for length in lengths)}: name positive numbers of tokens, each once."
        )
    if past := [length for length in lengths if length > context]:
        raise ElasticAttentionError(
            f"--lengths {', '.join(f'{length:,}' for length in past)}: {model} takes {context:,} tokens. Leave them "
            "out, or load the model with a RoPE scaling that reaches further."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Part `index` of `count` equal parts of the batches."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ElasticAttentionError(f"shard {self.index}/{self.count} does not exist; count from 0.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "0/4" -> the first of four. Raises ElasticAttentionError for other words and parts that there are not."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ElasticAttentionError(f"--shard {text!r} must look like 0/4, the first of four.")
        return cls(index=int(index), count=int(count))

    def holds(self, number: int) -> bool:
        """Is batch `number` in this part?"""
        return number % self.count == self.index

    def count_held(self, total: int) -> int:
        """How many of the batches 0 to `total` - 1 are in this part."""
        return len(range(self.index, total, self.count))


def count_steps(plan: EvalPlan, suite: Suite, shard: Shard) -> int:
    """How often `run_plan` will call `advance`; raises as `count_batches`."""
    return len(plan.methods) * shard.count_held(count_batches(plan, suite))


_METHOD = re.compile(r"(?P<name>\w+)(?:@(?P<target>[\d.]+))?(?:=(?P<folder>[^/\s].*?|/.*?))?(?P<full>/full)?")


def parse_method(text: str) -> Method:
    """A method from a word such as dense, all_sparse, routed, routed/full, random@0.7 or static=FOLDER.

    `/full` keeps and reads all keys while decoding; `@` is the share of sparse heads; `=` names an adapter or a mask.

    Raises:
        ElasticAttentionError: it is no such word, or as `find_method`; names the form.
    """
    found = _METHOD.fullmatch(text)
    if found is None:
        raise ElasticAttentionError(
            f"--methods {text!r} is unknown; write dense, all_sparse, random@0.7, routed or static=FOLDER, and /full "
            "behind it (routed/full, static=FOLDER/full) to read all keys while decoding."
        )
    is_full = found["full"] is not None
    method = settle_method(
        Method(
            name=found["name"],
            target=_read_share(text, found["target"]),
            folder=_read_folder(text, found["folder"], is_full),
            decode="full" if is_full else "sparse",
            note="full" if is_full else "",
        )
    )
    if is_full and (method.name == "dense" or find_method(method).decode == "full"):
        raise ElasticAttentionError(
            f"--methods {text!r}: {method.name} reads all keys while decoding anyway; leave /full out."
        )
    return method


def _read_share(text: str, share: str | None) -> float | None:
    with contextlib.suppress(ValueError):
        if share is None or 0 <= float(share) <= 1:
            return None if share is None else float(share)
    raise ElasticAttentionError(
        f"--methods {text!r}: the share of sparse heads behind @ is a number from 0 to 1, not {share}; write "
        f"{text.partition('@')[0]}@0.7."
    )


def _read_folder(text: str, folder: str | None, is_full: bool) -> str | None:
    """A slash at its end says that nothing belongs to the name but what stands before it."""
    if folder is None:
        return None
    if is_full and not folder.endswith("/") and Path(folder, "full").expanduser().is_dir():
        word = text.removesuffix("/full")
        raise ElasticAttentionError(
            f"--methods {text!r}: there is a folder {folder}/full. Write {text}/ for that one, or {word}//full for "
            f"{folder}, reading all keys while decoding."
        )
    return folder.rstrip("/") or "/"
