"""Do the shipped routers of SmolLM2 decide the same on a GPU as on the CPU? Writes a record; exit code 1 if not.

    python benchmarks/route_agreement.py --json results/route_agreement.json

The float32 run on the CPU is what every other run is compared with. In float32 all routes must be the same. In bfloat16
a route may differ only where its margin (sparse minus full logit) is smaller than rounding explains. What rounding
explains is measured, not chosen: with the routes of the reference given, so that every layer sees the same heads,
bfloat16 on the CPU moves the margins of a layer by at most e, and another device may move them by 2 e.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic_attention.evaluation.demo import SEED, DemoPrompt, make_prompts
from elastic_attention.evaluation.session import choose_device, describe_device, measure_peak_bytes, open_session
from elastic_attention.records import build_record, write_record
from elastic_attention.router.attention_router import FULL, SPARSE
from elastic_attention.tasks import KINDS

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """What the routers said about some prompts: margins (N, L, G) float32 and routes (N, L, G) bool, on the CPU."""

    margins: Tensor
    routes: Tensor


@contextmanager
def overheard(handle: Any, given: Tensor | None) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Inside, margins and routes of every layer are kept; `given` (L, G) routes are taken instead of the routers' own.

    The routers run as they always do: one kernel a layer where there is one, otherwise the modules.
    """
    margins: dict[int, Tensor] = {}
    routes: dict[int, Tensor] = {}
    fused, module = handle._fused.route, handle.decide

    def keep(index: int, pooled: Tensor, decided: Tensor) -> Tensor:
        logits = handle.routers[index].to(pooled.device).logits(pooled, handle.budget)
        margins[index], routes[index] = logits[0, :, SPARSE] - logits[0, :, FULL], decided[0]
        return decided if given is None else given[index].to(decided.device).expand_as(decided)

    def route(index: int, keys: Tensor, counts: Tensor, *, budget: float) -> Tensor:
        mean = (keys.float() * counts[..., None, None]).sum(1) / counts.sum(1)[:, None, None]
        return keep(index, mean, fused(index, keys, counts, budget=budget))

    handle._fused.route = route
    handle.decide = lambda index, pooled: keep(index, pooled, module(index, pooled))
    try:
        yield margins, routes
    finally:
        del handle._fused.route, handle.decide


def decide(handle: Any, prompts: Sequence[Sequence[int]], given: Tensor | None = None) -> Decisions:
    """Run the prompts, each for itself; `given` (N, L, G) are the routes that the layers take."""
    found = []
    for number, ids in enumerate(prompts):
        wanted = None if given is None else given[number]
        with torch.inference_mode(), overheard(handle, wanted) as (margins, routes):
            handle.model(torch.tensor([ids], device=handle.model.device), use_cache=True, logits_to_keep=1)
        layers = handle.routed_layers
        found.append([torch.stack([part[i] for i in layers]).cpu() for part in (margins, routes)])
    margins, routes = (torch.stack(part) for part in zip(*found, strict=True))
    return Decisions(margins=margins, routes=routes)


def compare(free: Decisions, forced: Decisions, reference: Decisions, bound: Tensor | None) -> Row:
    """One row of the record.

    Args:
        free: decisions that also took effect.
        forced: decisions while the reference's routes were taken.
        bound: (L,) how far rounding may move the margins of a layer; None = no route may differ.

    Returns:
        Among others agreement (of the free decisions), agreement_given_routes (of the forced ones), clear_ratio (share
        of the decisions whose margin exceeds the bound), differing_clear (those of them that differ), is_right.
    """
    differs, moved = forced.routes != reference.routes, (forced.margins - reference.margins).abs()
    limit = torch.zeros(differs.shape[1]) if bound is None else bound
    is_clear = reference.margins.abs() >= limit[None, :, None]
    agreement, differing_clear = (
        float((free.routes == reference.routes).float().mean()),
        int((differs & is_clear).sum()),
    )
    return {
        "decisions": differs.numel(),
        "agreement": agreement,
        "agreement_given_routes": 1 - float(differs.float().mean()),
        "clear_ratio": float(is_clear.float().mean()),
        "differing_clear": differing_clear,
        "largest_move": float(moved.max()),
        "largest_bound": None if bound is None else float(bound.max()),
        "smallest_margin": float(reference.margins.abs().min()),
        "median_margin": float(reference.margins.abs().median()),
        "is_right": differing_clear == 0 and (bound is not None or agreement == 1.0),
    }


def measure(options: argparse.Namespace, device: torch.device) -> tuple[list[Row], Any]:
    """The rows of all runs, and the session of the reference."""
    wanted = [DemoPrompt(task=kind, kind=kind, target_tokens=options.tokens) for kind in options.kinds]
    session = open_session(options.model, routers=options.routers, device="cpu", dtype="float32")
    prompts = [ids for _, ids, _ in make_prompts(session, wanted)]
    reference = decide(session.handle, prompts)
    rows: list[Row] = []

    def add(where: torch.device, dtype: str, factor: float | None) -> Tensor:
        """Add a row; `factor` times how far the margins moved on the CPU is the bound."""
        other = open_session(options.model, routers=options.routers, device=str(where), dtype=dtype)
        forced = decide(other.handle, prompts, given=reference.routes)
        moved = (forced.margins - reference.margins).abs().amax((0, 2)) if where.type == "cpu" else rounding
        row = compare(decide(other.handle, prompts), forced, reference, None if factor is None else factor * moved)
        rows.append({"device": where.type, "dtype": dtype, "backend": other.handle.backend} | row)
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()), flush=True)
        return moved

    rounding = add(torch.device("cpu"), "bfloat16", 1.0)
    if device.type != "cpu":
        add(device, "float32", None)
        add(device, "bfloat16", 2.0)
    return rows, session


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--routers", help="adapter folder; default: those that ship with the package")
    parser.add_argument("--device")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the prompts")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), help="one prompt of each")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; returns the exit code."""
    options, began = parse_options(arguments), time.perf_counter()
    device = choose_device(options.device)
    rows, session = measure(options, device)
    if options.json is not None:
        record = build_record(
            "benchmarks/route_agreement.py",
            config={"tokens": options.tokens, "kinds": options.kinds, "reference": "cpu float32"},
            model=session.describe(),
            data="texts shipped with the package, held-out split",
            device=describe_device(device),
            seed=SEED,
            n=len(options.kinds),
            metrics={"rows": rows},
            seconds=time.perf_counter() - began,
            bytes=measure_peak_bytes(device),
        )
        write_record(options.json, record)
    return int(not all(row["is_right"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
