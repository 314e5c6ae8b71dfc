"""A whole evaluation: check everything that can be wrong beforehand, ask, and make the record."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from ..models.checkpoint import CONFIG_FILE, STATIC_FILE, WEIGHTS_FILE, locate_folder
from ..models.families import describe_model, unwrap_model
from ..models.pretrained import find_pretrained
from ..records import Record, build_record
from ..tasks.packages import sha256_of
from ..tasks.suite import Suite, has_chat_template
from .answer_log import Line
from .methods import Method, check_method, find_method
from .plan import EvalPlan, Shard, check_lengths, count_batches
from .runner import run_plan
from .session import Base, describe_device, measure_peak_bytes
from .sharding import is_launched, wait_for_others
from .suite_summary import summarize_run

# Rows of a batch share a forward on a GPU; a CPU computes row by row anyway.
BATCH_TOKENS = {"cuda": 131_072, "cpu": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How "routed" routes: adapter folder or hub id (None: those that ship), backend, and `Handle.budget`."""

    routers: str | None = None
    backend: str = "auto"
    budget: float = 0.0

    def describe(self, model: Any, methods: Sequence[Method]) -> dict[str, Any]:
        """With a checksum, so that new routers under the same name are another run; None where no method reads any.

        Raises:
            AdapterError: the routers cannot be found.
        """
        is_default_read = any(method.name == "routed" and not method.folder for method in methods)
        is_read = self.routers is not None or is_default_read
        return {
            "routers": self.routers,
            "sha256": digest_adapter(self.routers, model) if is_read else None,
            "backend": self.backend,
            "budget": self.budget,
        }


def digest_adapter(source: str | None, model: Any, *, is_mask: bool = False) -> str:
    """A checksum of the files of an adapter or a mask: a folder, a hub id, or None for the one that ships.

    Args:
        is_mask: what the message asks for where there is none.

    Raises:
        AdapterError: there is none.
    """
    names = (CONFIG_FILE, WEIGHTS_FILE, STATIC_FILE)
    if source is None:
        folder = find_pretrained(describe_model(unwrap_model(model))[0])
    else:
        wanted, kind = (names[::-1], "mask") if is_mask else (names, "adapter")
        folder = locate_folder(source, wanted, kind=kind)
    found = [sha256_of(folder / name) for name in names if (folder / name).is_file()]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()


def fingerprint_weights(model: Any) -> str:
    """A checksum of a few values of every parameter: a folder whose model was trained further holds another model."""
    import torch

    few = [values.detach().reshape(-1)[:: max(1, values.numel() // 64)].float().cpu() for values in model.parameters()]
    return hashlib.sha256(torch.cat(few).numpy().tobytes()).hexdigest()[:16]


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
        ElasticAttentionError: lengths past the model's limit, or more prompts than a run takes.
    """
    asked = lengths or tuple(n for n in suite.default_lengths if n <= base.context) or (base.context,)
    check_lengths(asked, base.context, base.name)
    plan = EvalPlan(
        tasks=tasks,
        lengths=asked,
        samples=samples,
        methods=methods,
        seed=seed,
        batch_tokens=batch_tokens or BATCH_TOKENS.get(base.device.type, 1),
    )
    count_batches(plan, suite)  # which refuses a plan without end
    return plan


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
        ElasticAttentionError: the folder holds another run or another process fills it, an adapter is none of its
            method, the backend cannot run a method here, or a batch does not fit into memory.
    """
    from torch import OutOfMemoryError

    # A retrained adapter in the same folder answers differently, so it is another run.
    adapters = {
        method.label: digest_adapter(method.folder, base.model, is_mask=find_method(method).needs == "mask")
        for method in plan.methods
        if method.folder
    }
    for method in plan.methods:  # what does not fit is said before the output is taken and others have answered
        check_method(method, base.model, routers=routing.routers, backend=routing.backend)
    routed = routing.describe(base.model, plan.methods)
    identity = {
        "model": base.describe(),
        "weights": fingerprint_weights(base.model),
        "routing": routed,
        "adapters": adapters,
    }

    def run(tell: Callable[[str], None]) -> list[Line] | None:
        return run_plan(
            plan,
            suite,
            base.model,
            base.tokenizer,
            output,
            identity=identity,
            shard=shard,
            workers=workers,
            routers=routing.routers,
            backend=routing.backend,
            budget=routing.budget,
            context=base.context,
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
        config=shorten_folders({"plan": plan.describe(), "routing": routed, "adapters": adapters}),
        model=(model := base.describe()) | {"name": shorten_name(model["name"])},
        data={"suite": suite.name, **suite.describe()},
        device=describe_device(base.device),
        seed=plan.seed,
        n=metrics["counts"]["asked"],
        metrics=metrics,
        seconds=sum(line.seconds for line in lines),
        bytes=measure_peak_bytes(base.device),
    )


def shorten_folders(config: dict[str, Any]) -> dict[str, Any]:
    """The settings for a record, which says nothing of this computer: of a folder its name and its parent's."""

    plan, routing = config["plan"], config["routing"]
    methods = [method | {"folder": shorten_folder(method["folder"])} for method in plan["methods"]]
    return config | {
        "plan": plan | {"methods": methods},
        "routing": routing | {"routers": shorten_folder(routing["routers"])},
    }


def shorten_folder(folder: str | None) -> str | None:
    """Its name and its parent's."""
    return None if folder is None else "/".join(part for part in Path(folder).parts[-2:] if part != "/")


def shorten_name(name: str) -> str:
    """The model's name for a record; of a folder, here or on the computer that a run comes from, its last part."""
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.is_dir() else name


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
