"""Do routes that are decided early, or late, say what the routers say who read the whole prompt? Writes a record.

    python benchmarks/policy_agreement.py --processes 12 --json results/serving_probe.json

Exact are the routes of a prompt that comes in one piece, which is how routers are trained. Beside them stand "deferred"
(the prompt read densely, in two chunks), "first_chunk" (from its first N tokens) and "probe" (from a short pass over
both ends). Each way then scores the known answer through the cache it left, so that other routes count by what they
cost. "dense" is the model with all heads full.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from paper_statistics import bootstrap_mean

from elastic_attention.evaluation.session import Session, describe_device, open_session
from elastic_attention.models.generation import Prompt, probe_routes, tell_prompt
from elastic_attention.models.loading import new_cache
from elastic_attention.models.routing import POLICIES
from elastic_attention.records import build_record, write_record
from elastic_attention.tasks import KINDS, Corpora, generate, load_corpora, render

EXACT, DENSE = "one piece", "dense"
SEED = 1
_worker: tuple[Session, Corpora] | None = None  # of a process that measures


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prompt and its known answer, in tokens."""

    kind: str
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A way to decide.

    Attributes:
        name: of its row.
        policy: `Handle.prefill_policy`; None = every head full.
        first: tokens that "first_chunk" decides from.
    """

    name: str
    policy: str | None
    first: int = 2048

    def cut(self, length: int) -> int:
        """How many tokens of a prompt its first chunk has; the second has the rest."""
        if self.policy == "first_chunk":
            return self.first
        return length // 2 if self.name == "deferred" else length


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one way made of one prompt: routes (L, G) bool of the routed layers, on the CPU, and the answer's score."""

    way: str
    kind: str
    routes: torch.Tensor
    score: float


def list_ways(first_chunks: Sequence[int], policies: Sequence[str] = POLICIES) -> list[Way]:
    """The ways of these policies behind the exact one, and "dense" where no policy is left out."""
    early = [Way(name=f"first_chunk {n}", policy="first_chunk", first=n) for n in first_chunks]
    ways = [Way(name="deferred", policy="deferred"), *early, Way(name="probe", policy="probe")]
    dense = [Way(name=DENSE, policy=None)] if set(POLICIES) <= set(policies) else []
    return [Way(name=EXACT, policy="deferred"), *(way for way in ways if way.policy in policies), *dense]


@torch.inference_mode()
def read_prompt(handle: Any, row: Row, way: Way) -> Reading:
    """Read a prompt as `way` does, then its answer: routes, and 1 where the answer is the argmax (its share of tokens
    for kinds that are scored so)."""
    model, cache = handle.model, new_cache(handle.model)
    prompt, answer = (torch.tensor([ids], device=model.device) for ids in (row.prompt, row.answer))
    handle.prefill_policy, handle.first_chunk_tokens = way.policy or "deferred", way.first
    handle.set_routes("full" if way.policy is None else None)
    given = probe_routes(handle, prompt) if way.policy == "probe" else None
    with tell_prompt(handle, Prompt(num_columns=prompt.shape[1], routes=given)):
        handle.restart_report()
        for chunk in prompt.split(way.cut(prompt.shape[1]), dim=1):
            first = model(input_ids=chunk, past_key_values=cache, logits_to_keep=1).logits
        routes = handle.report()["routes"][0, list(handle.routed_layers)].cpu()
        rest = model(input_ids=answer[:, :-1], past_key_values=cache).logits if answer.shape[1] > 1 else first[:, :0]
    hits = (torch.cat([first, rest], dim=1)[0].argmax(dim=-1) == answer[0]).float()
    score = float(hits.min() if KINDS[row.kind].metric == "exact" else hits.mean())
    return Reading(way=way.name, kind=row.kind, routes=routes, score=score)


def summarize(readings: Sequence[Reading], exact: Sequence[Reading]) -> dict[str, Any]:
    """A row: agreement with the exact routes (None of "dense", which decides nothing), MSR, score and its difference to
    the exact way's, with 95% intervals.

    Args:
        exact: of the same prompts in the same order.
    """
    row: dict[str, Any] = {"way": readings[0].way, "n": len(readings)}
    row["msr"] = float(torch.stack([reading.routes.float().mean() for reading in readings]).mean())
    same = [float((a.routes == b.routes).double().mean()) for a, b in zip(readings, exact, strict=True)]
    figures = {
        "agreement": same,
        "score": [reading.score for reading in readings],
        "difference": [a.score - b.score for a, b in zip(readings, exact, strict=True)],
    }
    for name, values in figures.items():
        found = None if name == "agreement" and row["way"] == DENSE else bootstrap_mean(values)
        row |= {name: found and found.value, f"{name}_low": found and found.low, f"{name}_high": found and found.high}
    for category in ("sensitive", "robust"):
        chosen = [s for s, reading in zip(same, readings, strict=True) if KINDS[reading.kind].category == category]
        row[f"agreement_{category}"] = sum(chosen) / len(chosen) if chosen and row["way"] != DENSE else None
    return row


def measure(options: argparse.Namespace) -> Iterator[list[Reading]]:
    """Readings of one prompt after the other, all ways each."""
    prompts = itertools.product(range(options.samples), options.kinds)  # so that a run that is cut has all kinds
    jobs = [(options, kind, index) for index, kind in prompts]
    if options.processes == 1:
        yield from map(_measure_one, jobs)
        return
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measure_one, jobs)


def _measure_one(job: tuple[argparse.Namespace, str, int]) -> list[Reading]:
    options, kind, index = job
    session, corpora = _open_worker(options)
    sample = generate(
        kind,
        seed=SEED,
        index=index,
        target_tokens=options.lengths[index % len(options.lengths)],
        corpora=corpora,
        tokenizer=session.tokenizer,
        split="heldout",
    )
    prompt, answer = render(sample, session.tokenizer)
    row = Row(kind=kind, prompt=prompt, answer=answer)
    return [read_prompt(session.handle, row, way) for way in list_ways(options.first_chunks, options.policies)]


def _open_worker(options: argparse.Namespace) -> tuple[Session, Corpora]:
    global _worker
    if _worker is None:
        session = open_session(options.model, routers=options.routers, device=options.device, dtype=options.dtype)
        _worker = session, load_corpora()
    return _worker


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--routers", help="adapter folder; default: those that ship with the package")
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="default: the quickest one of the device")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--samples", type=int, default=30, help="prompts of each kind")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096, 8000], help="of prompts, in turn")
    parser.add_argument("--first-chunks", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--processes", type=int, default=1, help="that measure at the same time")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; returns the exit code."""
    options, began = parse_options(arguments), time.perf_counter()
    found: dict[str, list[Reading]] = {way.name: [] for way in list_ways(options.first_chunks, options.policies)}
    total = options.samples * len(options.kinds)
    for number, readings in enumerate(measure(options), 1):
        for reading in readings:
            found[reading.way].append(reading)
        if number == total or number % (2 * len(options.kinds)) == 0:
            rows = [summarize(own, found[EXACT]) for own in found.values()]
            _save(options, rows, number, time.perf_counter() - began)
            print(f"{number} of {total} prompts, {time.perf_counter() - began:.0f} s", flush=True)
    for row in rows:
        shown = {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()}
        print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)
    return 0


def _save(options: argparse.Namespace, rows: list[dict[str, Any]], count: int, seconds: float) -> None:
    if options.json is None:
        return
    session, _ = _open_worker(options)
    record = build_record(
        "benchmarks/policy_agreement.py",
        config={"lengths": options.lengths, "kinds": options.kinds, "exact": EXACT},
        model=session.describe(),
        data="texts shipped with the package, held-out split",
        device=describe_device(session.device),
        seed=SEED,
        n=count,
        metrics={"rows": rows},
        seconds=seconds,
        bytes=None,
    )
    write_record(options.json, record)


if __name__ == "__main__":
    sys.exit(main())
