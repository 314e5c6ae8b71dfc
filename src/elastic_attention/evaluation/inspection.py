"""The routes of one prompt, without an answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import records
from .session import Session, describe_device, make_head_map, measure_peak_bytes


def inspect_prompt(session: Session, prompt_ids: Sequence[int]) -> tuple[dict[str, Any], list[list[int | None]]]:
    """Run one prompt through the model.

    Returns:
        A row (prompt_tokens, routed, msr, esr_prefill) and the head map, L lists of G entries: 1 = sparse, 0 = full,
        None = a layer that is not routed.
    """
    with torch.inference_mode():
        session.model.base_model(input_ids=torch.tensor([list(prompt_ids)], device=session.device), use_cache=False)
    report = session.handle.report()
    row = {key: report[key][0] for key in ("prompt_tokens", "routed", "msr", "esr_prefill")}
    return row, make_head_map(report["routes"][0], session.handle.routed_layers)


def build_inspection_record(
    session: Session, row: dict[str, Any], head_map: list[list[int | None]], document: Path, started: float
) -> records.Record:
    """The record of `elastic-attn inspect`."""
    return records.build_record(
        "inspect",
        config={"budget": session.handle.budget, "sparse_pattern": session.handle.config.sparse_pattern},
        model=session.describe(),
        data=document.name,
        device=describe_device(session.device),
        seed=None,
        n=1,
        metrics={"rows": [row], "head_maps": {document.name: head_map}},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(session.device),
    )
