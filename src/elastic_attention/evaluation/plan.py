"""What an evaluation asks: which tasks, how long, how many, by which methods, and in which batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ElasticAttentionError
from ..tasks.suite import Suite
from .methods import Method, settle_method

MAX_ROWS = 256


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
    """
    for length in plan.lengths:
        rows = min(max(1, plan.batch_tokens // length), MAX_ROWS)
        for task in plan.tasks:
            count = suite.count_samples(task, plan.samples)
            parts = -(-count // rows)
            for part in range(parts):
                indexes = range(count * part // parts, count * (part + 1) // parts)
                yield Batch(task=task, length=length, indexes=tuple(indexes))


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
        """ "0/4" -> the first of four."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ElasticAttentionError(f"--shard {text!r} must look like 0/4, the first of four.")
        return cls(index=int(index), count=int(count))

    def holds(self, number: int) -> bool:
        """Is batch `number` in this part?"""
        return number % self.count == self.index


def count_steps(plan: EvalPlan, suite: Suite, shard: Shard) -> int:
    """How often `run_plan` will call `advance`."""
    return len(plan.methods) * sum(shard.holds(number) for number, _ in enumerate(list_batches(plan, suite)))


_METHOD = re.compile(r"(?P<name>\w+)(?:@(?P<target>[\d.]+))?(?:=(?P<folder>[^/\s].*?|/.*?))?(?P<full>/full)?")


def parse_method(text: str) -> Method:
    """A method from a word such as dense, all_sparse, routed, routed/full, random@0.7 or static=FOLDER.

    `/full` keeps and reads all keys while decoding; `@` is the share of sparse heads; `=` names an adapter or a mask.

    Raises:
        ElasticAttentionError: it is no such word, or as `find_method`; names the form.
    """
    found = _METHOD.fullmatch(text)
    if found is None or not _is_share(found["target"]):
        raise ElasticAttentionError(
            f"--methods {text!r} is unknown; write dense, all_sparse, random@0.7, routed or static=FOLDER, and /full "
            "behind it (routed/full, static=FOLDER/full) to read all keys while decoding."
        )
    return settle_method(
        Method(
            name=found["name"],
            target=None if found["target"] is None else float(found["target"]),
            folder=found["folder"],
            decode="full" if found["full"] else "sparse",
            note="full" if found["full"] else "",
        )
    )


def _is_share(text: str | None) -> bool:
    try:
        return text is None or 0 <= float(text) <= 1
    except ValueError:
        return False
