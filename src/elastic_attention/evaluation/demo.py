"""The demo: prompts of different kinds, each answered by the base model and by the routed one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import records
from ..errors import ElasticAttentionError
from ..tasks import Corpora, Sample, generate, load_corpora, render
from .answering import generate_answer, warm_up
from .documents import check_length
from .session import Session, describe_device, make_head_map, measure_peak_bytes

Row = dict[str, Any]
SEED = 2024
# Also behind a one-token answer, so that every prompt shows what decoding reads.
MIN_NEW_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPrompt:
    """One prompt of the demo.

    Attributes:
        task: what the table calls it.
        kind: kind of sample in `tasks.KINDS`, or "document".
        target_tokens: length of the prompt.
        index: which sample of that kind.
    """

    task: str
    kind: str
    target_tokens: int
    index: int = 0


DOCUMENT = "document"
# Chosen among the prompts that the base model answers with some margin; what routing loses on average is the quality
# study's to say.
PROMPTS = (
    DemoPrompt(task="country report", kind=DOCUMENT, target_tokens=5120),
    DemoPrompt(task="needle", kind="needle", target_tokens=4096, index=2),
    DemoPrompt(task="four records", kind="needles_4", target_tokens=4096),
    DemoPrompt(task="constants", kind="constants", target_tokens=6144, index=2),
    DemoPrompt(task="quotation", kind="copying", target_tokens=4096, index=2),
    DemoPrompt(task="word classes", kind="classes", target_tokens=7936, index=2),
    DemoPrompt(task="regions", kind="regions", target_tokens=6144, index=2),
    DemoPrompt(task="subject", kind="subject", target_tokens=4096),
)


def make_prompts(
    session: Session, prompts: Sequence[DemoPrompt] = PROMPTS
) -> list[tuple[DemoPrompt, list[int], list[int]]]:
    """The prompts with their token ids: (prompt, prompt_ids, answer_ids). All texts ship with the package.

    Raises:
        ElasticAttentionError: a prompt does not fit the model.
    """
    corpora, ready = load_corpora(), []
    for prompt in prompts:
        prompt_ids, answer_ids = render(_make_sample(prompt, corpora, session.tokenizer), session.tokenizer)
        check_length(session, len(prompt_ids), len(answer_ids))
        ready.append((prompt, prompt_ids, answer_ids))
    return ready


def answer_prompts(
    session: Session, prompts: Sequence[tuple[DemoPrompt, list[int], list[int]]]
) -> Iterator[tuple[Row, list[list[int | None]]]]:
    """Answer each prompt dense and elastic.

    Yields:
        The row of a prompt as the demo's record holds it, and its head map.
    """
    if prompts:
        warm_up(session, prompts[0][1])
    decode = session.tokenizer.decode
    for number, (prompt, prompt_ids, answer_ids) in enumerate(prompts):
        # Who goes first alternates, so that neither way gains from what the other one left in caches.
        num_new = max(len(answer_ids), MIN_NEW_TOKENS)
        answers = {
            is_dense: generate_answer(session, prompt_ids, max_new_tokens=num_new, is_dense=is_dense)
            for is_dense in ((True, False) if number % 2 == 0 else (False, True))
        }
        dense, elastic = answers[True], answers[False]
        report = elastic.report
        said, said_dense = (answer.token_ids[: len(answer_ids)] for answer in (elastic, dense))
        row = {
            "task": prompt.task,
            "kind": prompt.kind,
            "prompt_tokens": len(prompt_ids),
            "expected": decode(answer_ids).strip(),
            "answer": decode(said, skip_special_tokens=True).strip(),
            "answer_dense": decode(said_dense, skip_special_tokens=True).strip(),
            "correct": said == answer_ids,
            "correct_dense": said_dense == answer_ids,
            **{key: report[key][0] for key in ("msr", "esr_prefill", "esr_decode", "kv_bytes", "kv_bytes_dense")},
            "prefill_seconds": elastic.prefill_seconds,
            "prefill_seconds_dense": dense.prefill_seconds,
            "decode_seconds": elastic.decode_seconds,
            "decode_seconds_dense": dense.decode_seconds,
        }
        yield row, make_head_map(report["routes"][0], session.handle.routed_layers)


def build_demo_record(
    session: Session, rows: Sequence[Row], head_maps: dict[str, list[list[int | None]]], started: float
) -> records.Record:
    """The record of a finished demo; `started` is the `time.perf_counter()` at its beginning."""
    handle = session.handle
    return records.build_record(
        "demo",
        config={
            "prompts": [
                {"task": p.task, "kind": p.kind, "target_tokens": p.target_tokens, "index": p.index}
                for p in PROMPTS[: len(rows)]
            ],
            "sparse_pattern": handle.config.sparse_pattern,
            "decode": handle.decode,
            "backend": handle.backend,
            "budget": handle.budget,
        },
        model=session.describe(),
        data="texts shipped with the package, held-out split",
        device=describe_device(session.device),
        seed=SEED,
        n=len(rows),
        metrics={"rows": list(rows), "head_maps": head_maps},
        seconds=time.perf_counter() - started,
        bytes=measure_peak_bytes(session.device),
    )


def loses_answers(rows: Sequence[Row]) -> bool:
    """Does the routed model answer fewer prompts right than the base model?"""
    return sum(row["correct"] for row in rows) < sum(row["correct_dense"] for row in rows)


def _make_sample(prompt: DemoPrompt, corpora: Corpora, tokenizer: Any) -> Sample:
    if prompt.kind == DOCUMENT:
        return _make_document_sample(corpora)
    return generate(
        prompt.kind,
        seed=SEED,
        index=prompt.index,
        target_tokens=prompt.target_tokens,
        corpora=corpora,
        tokenizer=tokenizer,
        split="heldout",
    )


def _make_document_sample(corpora: Corpora) -> Sample:
    """A whole report on one country as it was published, and an address from one of its lines."""
    name, line = "Qatar", "Embassy of Qatar:"
    country = next((country for country in corpora.countries if country.name == name), None)
    found = [text for text in (country.profile if country else "").splitlines() if text.startswith(line)]
    if country is None or not found:
        raise ElasticAttentionError(f"The shipped texts hold no line {line!r}; install the package again.")
    street, _, _ = found[0].removeprefix(line).partition(",")
    return Sample(
        kind=DOCUMENT,
        category="sensitive",
        context=country.profile,
        question=f"Where is the embassy in {name}?",
        answer=street,
        answer_prefix=line,
        is_chat=True,
    )
