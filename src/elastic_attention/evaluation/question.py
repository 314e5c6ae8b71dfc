"""One question over one document, elastic and, to compare, dense."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import records
from .answering import generate_answer, warm_up
from .session import Session, describe_device, make_head_map, measure_peak_bytes


def answer_question(
    session: Session, prompt_ids: Sequence[int], *, max_new_tokens: int, compare: bool
) -> Iterator[dict[str, Any]]:
    """Answer one prompt.

    Args:
        prompt_ids: token ids.
        max_new_tokens: longest answer.
        compare: answer with the base model as well, after a warm-up of both ways.

    Yields:
        A row each: way ("elastic", then "dense"), answer, prompt_tokens, new_tokens, prefill_seconds, decode_seconds,
        kv_bytes; the elastic one also has routed, msr, esr_prefill, esr_decode, kv_bytes_dense and head_map.
    """
    if compare:
        warm_up(session, prompt_ids)
    report: dict[str, Any] = {}
    for way in ("elastic", "dense") if compare else ("elastic",):
        answer = generate_answer(session, prompt_ids, max_new_tokens=max_new_tokens, is_dense=way == "dense")
        row: dict[str, Any] = {
            "way": way,
            "answer": answer.text.strip(),
            "prompt_tokens": len(prompt_ids),
            "new_tokens": len(answer.token_ids),
            "prefill_seconds": answer.prefill_seconds,
            "decode_seconds": answer.decode_seconds,
        }
        if way == "elastic":
            report = answer.report
            keys = ("routed", "msr", "esr_prefill", "esr_decode", "kv_bytes", "kv_bytes_dense")
            row |= {key: report[key][0] for key in keys}
            row["head_map"] = make_head_map(report["routes"][0], session.handle.routed_layers)
        else:
            # The last new token is never fed back, so it has no keys.
            num_cached = len(prompt_ids) + len(answer.token_ids) - 1
            row["kv_bytes"] = session.dense_bytes_per_token * num_cached
        yield row


def build_question_record(
    session: Session, rows: Sequence[dict[str, Any]], question: str, document: Path, started: float
) -> records.Record:
    """The record of `elastic-attn run`; the head map stands apart from the rows."""
    (head_map,) = (row["head_map"] for row in rows if "head_map" in row)
    plain = [{key: value for key, value in row.items() if key != "head_map"} for row in rows]
    handle = session.handle
    return records.build_record(
        "run",
        config={"question": question, "decode": handle.decode, "backend": handle.backend, "budget": handle.budget},
        model=session.describe(),
        data=document.name,
        device=describe_device(session.device),
        seed=None,
        n=1,
        metrics={"rows": plain, "head_maps": {document.name: head_map}},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(session.device),
    )
