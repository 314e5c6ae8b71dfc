"""Greedy answers with the prefill timed apart from decoding, dense or elastic."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.answers import pad_token
from .session import Session

WARM_UP_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model said and what it cost.

    Attributes:
        token_ids: generated tokens, an end mark included.
        text: the same as text, without special tokens.
        prefill_seconds: from the call to the first token, wall time.
        decode_seconds: from the first token to the last one.
        report: `Handle.report()` of an elastic answer, empty for a dense one.
    """

    token_ids: list[int]
    text: str
    prefill_seconds: float
    decode_seconds: float
    report: dict[str, Any]


class FirstTokenClock:
    """A streamer for `generate` that notes when the first token came."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first: float | None = None
        self._num_calls = 0

    def put(self, tokens: torch.Tensor) -> None:
        """Called with the prompt, and then with each token once it is on the host."""
        self._num_calls += 1
        if self._num_calls == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        """Called after the last token."""


def generate_answer(
    session: Session, prompt_ids: Sequence[int], *, max_new_tokens: int, is_dense: bool = False
) -> Answer:
    """Generate greedily from one prompt.

    Args:
        prompt_ids: token ids, at least one; together with the answer they fit the model's context.
        max_new_tokens: at most this many tokens; fewer when the model ends its answer.
        is_dense: run the base model instead of routed heads.
    """
    ids = torch.tensor([list(prompt_ids)], device=session.device)
    with session.handle.disabled() if is_dense else contextlib.nullcontext(), torch.inference_mode():
        clock = FirstTokenClock()
        output = session.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad_token(session.tokenizer),
            streamer=clock,
        )
        tokens = output[0, ids.shape[1] :].tolist()
        stopped = time.perf_counter()
    first = clock.first or stopped
    return Answer(
        token_ids=tokens,
        text=session.tokenizer.decode(tokens, skip_special_tokens=True),
        prefill_seconds=first - clock.started,
        decode_seconds=stopped - first,
        report={} if is_dense else session.handle.report(),
    )


def warm_up(session: Session, prompt_ids: Sequence[int]) -> None:
    """Answer the start of a prompt once in either way, so that no timing pays for what happens once."""
    for is_dense in (True, False):
        generate_answer(session, prompt_ids[:WARM_UP_TOKENS], max_new_tokens=2, is_dense=is_dense)
