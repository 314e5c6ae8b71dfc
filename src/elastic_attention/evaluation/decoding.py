"""Scores through the cache: the prompt in one forward, then the answer's tokens, with decode="sparse" or "full"."""

from collections.abc import Sequence
from typing import Any

import torch

from ..models.answers import Row
from ..models.generation import Prompt, tell_prompt
from ..models.handle import Handle
from ..models.loading import new_cache
from ..tasks import KINDS
from .quality import SampleScore


@torch.no_grad()
def score_through_cache(handle: Handle, rows: Sequence[Row], label: str) -> list[SampleScore]:
    """Score rows one by one as the handle routes them and as its `decode` mode reads the cache.

    Returns:
        One score a row; an exact kind scores 1 when every answer token is the argmax given those before it.
    """
    from rich.progress import track

    return [_score(handle, row) for row in track(rows, description=label)]


def _score(handle: Handle, row: Row) -> SampleScore:
    model: Any = handle.model
    cache = new_cache(model)
    prompt, answer = (torch.tensor([ids], device=model.device) for ids in (row.prompt, row.answer))
    with tell_prompt(handle, Prompt(num_columns=prompt.shape[1])):
        handle.restart_report()
        first = model(input_ids=prompt, past_key_values=cache, logits_to_keep=1).logits
        report = handle.report()
        rest = model(input_ids=answer[:, :-1], past_key_values=cache).logits if answer.shape[1] > 1 else first[:, :0]
    logits = torch.cat([first, rest], dim=1)[0].float()
    hits = (logits.argmax(dim=-1) == answer[0]).float()
    is_exact = KINDS[row.kind].metric == "exact"
    return SampleScore(
        kind=row.kind,
        category=row.category,
        index=row.index,
        prompt_tokens=len(row.prompt),
        score=float(hits.min().item()) if is_exact else hits.mean().item(),
        loss=torch.nn.functional.cross_entropy(logits, answer[0]).item(),
        msr=report["msr"][0],
        esr_prefill=report["esr_prefill"][0],
    )
