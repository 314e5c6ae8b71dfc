"""Figures of the claims that are no scores: head maps, likeness of tasks, agreement of routes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from paper_claims import Claim, Entry, Training
from paper_lab import Lab, name_adapter
from paper_samples import KeptSuite
from paper_sharing import hold
from paper_statistics import RESAMPLES, Estimate, Seeds, bootstrap_mean, centre, is_robust, is_sensitive
from torch import Tensor

from elastic_attention import attach
from elastic_attention.evaluation.answer_log import AnswerLog, Line, make_line, make_skipped_line
from elastic_attention.evaluation.asking import ask_samples, pad_prompts
from elastic_attention.evaluation.plan import Batch, EvalPlan, Shard, list_batches
from elastic_attention.evaluation.readers import Reader, read_routes, write_routes
from elastic_attention.models.answers import pad_token
from elastic_attention.models.generation import probe_routes
from elastic_attention.tasks.suite import Skipped, SuiteSample

CHANGING, CONSTANT = 0.5, 0.1
PROMPTS = 8  # of a task, for the likeness of tasks

Figures = dict[str, Estimate | None]


def measure_head_maps(lab: Lab, claim: Claim, found: dict[str, Seeds]) -> Figures:
    """Shares of heads that change with the category, and that do not."""
    (every,) = found["fa_ssa"]
    return compare_categories(every)


def compare_categories(every: Sequence[Line]) -> Figures:
    """`measure_head_maps` of answers."""
    robust, sensitive = (_stack(every, test) for test in (is_robust, is_sensitive))
    if not (len(robust) and len(sensitive)):
        return dict.fromkeys(("changing", "constant"))
    generator = torch.Generator().manual_seed(0)
    gaps = torch.stack([(_redraw(robust, generator) - _redraw(sensitive, generator)).abs() for _ in range(500)])
    point = (robust.mean(0) - sensitive.mean(0)).abs()
    return {
        "changing": _spread((point >= CHANGING).double().mean(), (gaps >= CHANGING).double().mean(1)),
        "constant": _spread((point < CONSTANT).double().mean(), (gaps < CONSTANT).double().mean(1)),
    }


def measure_map_overlap(lab: Lab, claim: Claim, found: dict[str, Seeds]) -> Figures:
    """Agreement on sensitive kinds of routers of all kinds with those of sensitive kinds alone."""
    (every,), (one,) = found["fa_ssa"], found["sensitive_only"]
    return compare_maps(every, one)


def compare_maps(every: Sequence[Line], one: Sequence[Line]) -> Figures:
    """`measure_map_overlap` of answers."""
    other = {(x.task, x.length, x.index): x for x in one if x.routes}
    pairs = [
        (_flat(line), _flat(other[line.task, line.length, line.index]))
        for line in every
        if line.routes and is_sensitive(line) and (line.task, line.length, line.index) in other
    ]
    if not pairs:
        return {"agreement_above_chance": None}
    mine, theirs = (torch.stack(part) for part in zip(*pairs, strict=True))
    share, base = mine.mean(1), theirs.mean(1)
    # What two maps of these densities would agree in if they knew nothing of each other.
    chance = share * base + (1 - share) * (1 - base)
    return {"agreement_above_chance": bootstrap_mean(((mine == theirs).double().mean(1) - chance).tolist())}


def measure_task_similarity(lab: Lab, claim: Claim, found: dict[str, Seeds]) -> Figures:
    """Mean cosine between the tasks' mean keys, before and after the task MLP, over layers and heads."""
    suite, entry = lab.open("mixture"), claim.entries[0]
    handle = attach(lab.base.model, str(lab.train(entry, 0)))
    before, after = [], []
    try:
        for task in suite.tasks:
            lab.check_time()
            length = lab.list_lengths("mixture")[0]
            built = suite.suite.build(task, range(PROMPTS), length=length, seed=1, tokenizer=lab.base.tokenizer)
            pooled = [_pool(handle, s.prompt_ids) for s in built if isinstance(s, SuiteSample)]
            if pooled:
                before.append(torch.stack([one for one, _ in pooled]))
                after.append(torch.stack([one for _, one in pooled]))
    finally:
        handle.detach()
    return compare_tasks(before, after)


def compare_tasks(before: Sequence[Tensor], after: Sequence[Tensor]) -> Figures:
    """Likeness of tasks: each tensor is a task's (prompts, heads, width).

    Prompts that are drawn twice make the mean of a task noisier, and noisy means are less alike: the draws are biased.
    """
    generator = torch.Generator().manual_seed(0)
    points = [_similarity([one.mean(0) for one in tasks]) for tasks in (before, after)]
    draws: list[list[float]] = [[], []]
    for _ in range(RESAMPLES // 10):
        index = [torch.randint(len(one), (len(one),), generator=generator) for one in before]
        for number, tasks in enumerate((before, after)):
            draws[number].append(_similarity([one[i].mean(0) for one, i in zip(tasks, index, strict=True)]))
    drawn = torch.tensor(draws, dtype=torch.float64)
    value = torch.tensor(points, dtype=torch.float64)
    return {
        "before": _centre(value[0], drawn[0]),
        "after": _centre(value[1], drawn[1]),
        "change": _centre(value[1] - value[0], drawn[1] - drawn[0]),
    }


def measure_probe(lab: Lab, claim: Claim, found: dict[str, Seeds]) -> Figures:
    """Answers with the probe's routes go to `found["probe"]`; the figure is how many routes are the exact ones."""
    entry = Entry(name="fa_ssa", training=Training())
    suite = lab.open("mixture")
    plan = lab.plan(entry, 0, suite, found)
    adapter = lab.train(entry, 0)
    folder = lab.output / "answers" / "mixture" / f"probe-{name_adapter(str(adapter))}-{plan.samples}"
    with hold(folder):
        folder.mkdir(exist_ok=True)
        log = AnswerLog(folder, Shard())
        if missing := [batch for batch in list_batches(plan, suite) if not log.has("probe", batch)]:
            _ask_probed(lab, suite, plan, str(adapter), missing, log)
    found["probe"] = [list(log.done.values())]
    return {"agreement": agree(found["probe"][0], found["fa_ssa"][0])}


def agree(ones: Sequence[Line], others: Sequence[Line]) -> Estimate | None:
    """Share of the routes that are the same, sample by sample."""
    known = {(x.task, x.length, x.index): x for x in others if x.routes}
    shared = [(_flat(x), _flat(known[key])) for x in ones if (key := (x.task, x.length, x.index)) in known]
    return bootstrap_mean([float((a == b).double().mean()) for a, b in shared])


def _ask_probed(
    lab: Lab, suite: KeptSuite, plan: EvalPlan, adapter: str, batches: Sequence[Batch], log: AnswerLog
) -> None:
    lab.check_time()
    suite.prepare(plan, lab.base.tokenizer, lab.workers)
    handle = attach(lab.base.model, adapter)
    try:
        for batch in batches:
            built = suite.build(
                batch.task, batch.indexes, length=batch.length, seed=plan.seed, tokenizer=lab.base.tokenizer
            )
            log.add(list(answer_probed(handle, suite, lab.base.tokenizer, list(built))))
            lab.check_time()
    finally:
        handle.detach()


def answer_probed(handle: Any, suite: Any, tokenizer: Any, built: Sequence[SuiteSample | Skipped]) -> Iterator[Line]:
    """The lines of a batch whose routes a probe has decided."""
    for entry in built:
        if isinstance(entry, Skipped):
            yield make_skipped_line("probe", entry)
    samples = [entry for entry in built if isinstance(entry, SuiteSample)]
    if not samples:
        return
    routes = probe_routes(handle, *pad_prompts(samples, pad_token(tokenizer), handle.model.device))
    reader = Reader(handle=handle, choose_routes=lambda ids: routes)
    for row, (sample, reply) in enumerate(zip(samples, ask_samples(reader, tokenizer, samples), strict=True)):
        reply.books["routes"] = write_routes(routes[row], handle.routed_layers)
        yield make_line("probe", sample, reply, suite.score(reply.answer, sample))


def _pool(handle: Any, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(heads of all layers, D) pooled keys of a prompt, and what the task MLPs make of them, on the CPU."""
    before, after = [], []

    def decide(index: int, pooled: Tensor) -> Tensor:
        routes = handle.decide(index, pooled)  # moves the router to where the keys are
        before.append(pooled[0].double().cpu())
        after.append(handle.routers[index].task_mlp(pooled.float())[0].double().cpu())
        return routes

    with torch.no_grad(), handle.routed_by(decide, is_sampling=False):
        handle.model.base_model(input_ids=torch.tensor([list(ids)], device=handle.model.device), use_cache=False)
    return torch.cat(before), torch.cat(after)


def _similarity(means: Sequence[Tensor]) -> float:
    """Mean cosine over pairs of tasks and over heads; each is (heads, width)."""
    pairs = itertools.combinations(means, 2)
    return float(torch.stack([torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs]).mean())


def _flat(line: Line) -> Tensor:
    return torch.tensor([x for row in read_routes(line.routes) for x in row if x is not None], dtype=torch.float64)


def _stack(lines: Sequence[Line], test: Callable[[Line], bool]) -> Tensor:
    maps = [_flat(line) for line in lines if line.routes and test(line)]
    return torch.stack(maps) if maps else torch.zeros(0)


def _redraw(maps: Tensor, generator: torch.Generator) -> Tensor:
    return maps[torch.randint(len(maps), (len(maps),), generator=generator)].mean(0)


def _spread(value: Tensor, drawn: Tensor) -> Estimate:
    return Estimate(value=float(value), **_find_ends(drawn))


def _centre(value: Tensor, drawn: Tensor) -> Estimate:
    return centre(float(value), **_find_ends(drawn))


def _find_ends(drawn: Tensor) -> dict[str, float]:
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return {"low": low, "high": high}


MEASURES: dict[str, Callable[[Lab, Claim, dict[str, Seeds]], Figures]] = {
    "head_maps": measure_head_maps,
    "map_overlap": measure_map_overlap,
    "task_similarity": measure_task_similarity,
    "probe": measure_probe,
}
