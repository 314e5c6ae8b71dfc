"""A whole evaluation: check everything that can be wrong beforehand, ask, and make the record."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..records import Record, build_record
from ..tasks.packages import sha256_of
from ..tasks.suite import Suite, has_chat_template
from .answer_log import Line
from .methods import Method
from .plan import EvalPlan, Shard, check_lengths
from .runner import run_plan
from .session import Base, describe_device, measure_peak_bytes
from .sharding import is_launched, wait_for_others
from .suite_summary import summarize_run

ROUTER_FILE = "elastic_routers.safetensors"
# Rows of a batch share a forward on a GPU; a CPU computes row by row anyway.
BATCH_TOKENS = {"cuda": 131_072, "cpu": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How "routed" routes: adapter folder or hub id (None: those that ship), backend, and `Handle.budget`."""

    routers: str | None = None
    backend: str = "auto"
    budget: float = 0.0

    def describe(self) -> dict[str, Any]:
        """With a checksum, so that a folder with new routers is another run."""
        file = Path(self.routers or "") / ROUTER_FILE
        return {
            "routers": self.routers,
            "sha256": sha256_of(file) if self.routers and file.is_file() else None,
            "backend": self.backend,
            "budget": self.budget,
        }


def make_plan(
    base: Base,
    suite: Suite,
    *,
    tasks: tuple[str, ...],
    lengths: tuple[int, ...],
    samples: int | None,
    methods: tuple[Method, ...],
    seed: int,
    batch_tokens: int | None,
) -> EvalPlan:
    """The plan with the defaults filled in; `tasks` as `check_tasks` gives them.

    Raises:
        ElasticAttentionError: lengths past the model's limit.
    """
    asked = lengths or tuple(n for n in suite.default_lengths if n <= base.context) or (base.context,)
    check_lengths(asked, base.context, base.name)
    return EvalPlan(
        tasks=tasks,
        lengths=asked,
        samples=samples,
        methods=methods,
        seed=seed,
        batch_tokens=batch_tokens or BATCH_TOKENS.get(base.device.type, 1),
    )


def evaluate_suite(
    base: Base,
    suite: Suite,
    plan: EvalPlan,
    output: Path,
    *,
    routing: Routing,
    shard: Shard,
    workers: int = 0,
    advance: Callable[[str], None] = lambda label: None,
) -> Record | None:
    """Run a plan, or the part that is this process's, and build the record.

    Returns:
        The record; None while other shards are still at work, and in all processes of torchrun but the first.

    Raises:
        ElasticAttentionError: the folder holds another run, or a batch does not fit into memory.
    """
    from torch import OutOfMemoryError

    def run(tell: Callable[[str], None]) -> list[Line] | None:
        return run_plan(
            plan,
            suite,
            base.model,
            base.tokenizer,
            output,
            identity={"model": base.describe(), "routing": routing.describe()},
            shard=shard,
            workers=workers,
            routers=routing.routers,
            backend=routing.backend,
            budget=routing.budget,
            advance=tell,
        )

    try:
        with hush_transformers():
            lines = run(advance)
    except OutOfMemoryError as error:
        raise ElasticAttentionError(
            f"A batch of {plan.batch_tokens:,} tokens does not fit into the memory of {base.device}; choose another "
            "--output and a smaller --batch-tokens."
        ) from error
    if is_launched():
        wait_for_others()
        lines = run(lambda label: None) if shard.index == 0 else None
    if lines is None:
        return None
    metrics = summarize_run(plan, suite, lines) | {"has_chat_template": has_chat_template(base.tokenizer)}
    return build_record(
        "eval",
        config={"plan": plan, "routing": routing.describe()},
        model=base.describe(),
        data={"suite": suite.name, **suite.describe()},
        device=describe_device(base.device),
        seed=plan.seed,
        n=metrics["counts"]["asked"],
        metrics=metrics,
        seconds=sum(line.seconds for line in lines),
        bytes=measure_peak_bytes(base.device),
    )


@contextlib.contextmanager
def hush_transformers() -> Iterator[None]:
    """Inside, transformers warns of nothing: prompts are tried at sizes past the limit before one fits."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
