"""The one runner of evaluations: every method answers the same batches of a suite, and every answer is kept at once."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ElasticAttentionError
from ..tasks.suite import Skipped, Suite, SuiteSample
from ..workers import end_with_parent
from .answer_log import AnswerLog, Key, Line, make_line, make_skipped_line, read_answers
from .asking import ask_samples
from .methods import Method
from .plan import Batch, EvalPlan, Shard, list_batches
from .readers import Reader, open_reader
from .run_folder import claim_folder, hold_part

Built = tuple[Batch, list[SuiteSample | Skipped]]


def run_plan(
    plan: EvalPlan,
    suite: Suite,
    model: Any,
    tokenizer: Any,
    output: Path,
    *,
    identity: dict[str, Any],
    shard: Shard | None = None,
    workers: int = 0,
    routers: str | None = None,
    backend: str = "auto",
    budget: float = 0.0,
    context: int | None = None,
    advance: Callable[[str], None] = lambda label: None,
) -> list[Line] | None:
    """Ask what is not answered yet.

    Args:
        model: not attached; it is itself again afterwards.
        output: folder of the answers; a killed run, and other shards of the same run, go on there.
        identity: what decides the answers besides plan and suite: model, dtype, routers, budget.
        shard: the part of the batches that is this process's.
        workers: processes that make samples ahead; 0 makes them here.
        routers, backend, budget: as in `open_reader`.
        context: most tokens that the model takes; a sample that needs more with its answer is skipped by name.
        advance: called after each batch of each method with what was done, also for those found in the folder.

    Returns:
        All lines, methods in the order of the plan and samples in the order of the suite; None while other shards are
        still at work.

    Raises:
        ElasticAttentionError: the folder holds answers of another run or damaged ones, another process is at work on
            this part, or the plan is too large.
    """
    part = shard or Shard()
    batches = list(list_batches(plan, suite))
    own = [batch for number, batch in enumerate(batches) if part.holds(number)]
    with hold_part(output, part):
        claim_folder(output, identity | {"plan": plan.describe(), "suite": suite.name, "suite_data": suite.describe()})
        log = AnswerLog(output, part)
        missing = list(_find_missing(plan, own, log, advance))
        made = (
            (batch, [check_context(entry, context) for entry in built])
            for batch, built in build_batches(suite, tokenizer, missing, seed=plan.seed, workers=workers)
        )
        for method, asked in itertools.groupby(_order_asking(plan, made, log), key=operator.itemgetter(0)):
            with open_reader(method, model, routers=routers, backend=backend, budget=budget) as reader:
                for _, batch, built in asked:
                    log.add(list(_answer_batch(method, reader, suite, tokenizer, built)))
                    advance(f"{method.label} {batch.task} {batch.length:,}")
    return collect_lines(plan, batches, read_answers(output))


def _find_missing(
    plan: EvalPlan, batches: Sequence[Batch], log: AnswerLog, advance: Callable[[str], None]
) -> Iterator[Batch]:
    """The batches that a method has still to answer; `advance` is told of the answers found in the log."""
    for batch in batches:
        answered = [method.label for method in plan.methods if log.has(method.label, batch)]
        for label in answered:
            advance(label)
        if len(answered) < len(plan.methods):
            yield batch


def _order_asking(plan: EvalPlan, made: Iterable[Built], log: AnswerLog) -> Iterator[tuple[Method, *Built]]:
    """Who answers what, a method after the other in each task and length: attaching takes longer than a small batch."""
    for _, group in itertools.groupby(made, key=lambda one: (one[0].task, one[0].length)):
        cell = list(group)
        for method in plan.methods:
            yield from ((method, batch, built) for batch, built in cell if not log.has(method.label, batch))


def check_context(entry: SuiteSample | Skipped, context: int | None) -> SuiteSample | Skipped:
    """The sample, if the model can take its prompt and longest answer; positions past its limit mean nothing to it."""
    if context is None or isinstance(entry, Skipped):
        return entry
    needed = len(entry.prompt_ids) + entry.max_new_tokens
    if needed <= context:
        return entry
    reason = f"prompt and answer need {needed:,} tokens, the model takes {context:,}; ask for a smaller length."
    return Skipped(task=entry.task, index=entry.index, length=entry.length, reason=reason)


def collect_lines(plan: EvalPlan, batches: Sequence[Batch], done: Mapping[Key, Line]) -> list[Line] | None:
    """The lines of the whole run in its order; None if some are missing.

    Raises:
        ElasticAttentionError: methods were asked different prompts under one index, which no pairing may hide.
    """
    keys = [
        (method.label, batch.task, batch.length, index)
        for method in plan.methods
        for batch in batches
        for index in batch.indexes
    ]
    if not all(key in done for key in keys):
        return None
    lines = [done[key] for key in keys]
    asked: dict[tuple[str, int, int], Line] = {}
    for line in lines:
        first = asked.setdefault(line.key[1:], line)
        if not (line.skipped or first.skipped) and line.prompt_sha256 != first.prompt_sha256:
            raise ElasticAttentionError(
                f"{line.task} at {line.length:,} tokens, sample {line.index}: {line.method} was asked another prompt "
                f"than {first.method}. Data or package changed while the run was stopped; choose another --output."
            )
    return lines


def find_lines(plan: EvalPlan, suite: Suite, folder: Path) -> list[Line] | None:
    """The lines that runs left in `folder`; None if some are missing."""
    return collect_lines(plan, list(list_batches(plan, suite)), read_answers(folder))


def build_batches(
    suite: Suite, tokenizer: Any, batches: Sequence[Batch], *, seed: int, workers: int
) -> Iterator[Built]:
    """The batches with their samples, in order; worker processes make them ahead of the model."""
    from torch.utils.data import DataLoader

    options: dict[str, Any] = {"prefetch_factor": 8, "worker_init_fn": _start_worker} if workers else {}
    return iter(DataLoader(_Batches(suite, tokenizer, batches, seed), batch_size=None, num_workers=workers, **options))


def _start_worker(number: int) -> None:
    end_with_parent(number)
    # A tokenizer that was used before the process was forked asks for this, or warns in every worker.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class _Batches(torch.utils.data.Dataset[Built]):
    def __init__(self, suite: Suite, tokenizer: Any, batches: Sequence[Batch], seed: int) -> None:
        self.suite, self.tokenizer, self.batches, self.seed = suite, tokenizer, batches, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Built:
        batch = self.batches[number]
        return batch, list(
            self.suite.build(batch.task, batch.indexes, length=batch.length, seed=self.seed, tokenizer=self.tokenizer)
        )


def _answer_batch(
    method: Method, reader: Reader, suite: Suite, tokenizer: Any, built: Sequence[SuiteSample | Skipped]
) -> Iterator[Line]:
    for entry in built:
        if isinstance(entry, Skipped):
            yield make_skipped_line(method.label, entry)
    samples = [entry for entry in built if isinstance(entry, SuiteSample)]
    # What a forward shares must be equal; within a task it nearly always is.
    kinds: dict[tuple[int, int, bool], list[SuiteSample]] = {}
    for sample in samples:
        longest = 0 if sample.target_ids else sample.max_new_tokens
        kinds.setdefault((longest, sample.min_new_tokens, bool(sample.target_ids)), []).append(sample)
    for group in kinds.values():
        for sample, reply in zip(group, ask_samples(reader, tokenizer, group), strict=True):
            yield make_line(method.label, sample, reply, suite.score(reply.answer, sample))
