"""Scoring given answers in one forward: prompt and answer together, padded on the right.

Under causal attention padding on the right changes nothing, so a batch needs no mask. And because a sparse head reads
by position alone, this forward computes what token-by-token decoding with decode="sparse" computes: an answer whose
tokens are all the argmax is exactly the one that greedy decoding would produce.

Shape letters: B samples of a forward, T columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tasks import Corpora, generate, render

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """One rendered sample; `index` is its identity in the data."""

    kind: str
    category: str
    index: int
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerBatch:
    """Samples of one forward.

    Attributes:
        input_ids: (B, T) int64, prompt then answer then padding.
        labels: (B, T) int64, the token at this column if it counts, else -100.
        prompt_lengths: (B,) int64.
        sample_ids: (B,) int64.
        rows: the samples.
    """

    input_ids: Tensor
    labels: Tensor
    prompt_lengths: Tensor
    sample_ids: Tensor
    rows: tuple[Row, ...]

    def to(self, device: torch.device | str) -> "AnswerBatch":
        """The same batch on `device`."""
        names = ("input_ids", "labels", "prompt_lengths", "sample_ids")
        return AnswerBatch(rows=self.rows, **{name: getattr(self, name).to(device) for name in names})


def draw_row(kind: str, *, seed: int, index: int, length: int, corpora: Corpora, tokenizer: Any, split: str) -> Row:
    """Generate and tokenise one sample of about `length` prompt tokens."""
    sample = generate(
        kind, seed=seed, index=index, target_tokens=length, corpora=corpora, tokenizer=tokenizer, split=split
    )
    return Row(kind, sample.category, index, *render(sample, tokenizer))


def collate_rows(rows: Sequence[Row], *, pad: int, loss_on: str = "response") -> AnswerBatch:
    """Pad rows to a batch; `loss_on` "response" or "all" says which tokens count."""
    width = max(len(r.prompt) + len(r.answer) for r in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row.prompt + row.answer)
        ids[i, : len(tokens)] = tokens
        first = 1 if loss_on == "all" else len(row.prompt)
        labels[i, first : len(tokens)] = tokens[first:]
    return AnswerBatch(
        input_ids=ids,
        labels=labels,
        prompt_lengths=torch.tensor([len(r.prompt) for r in rows]),
        sample_ids=torch.tensor([r.index for r in rows]),
        rows=tuple(rows),
    )


def pad_token(tokenizer: Any) -> int:
    """A token id to fill unused columns with; its value never matters."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def score_answers(model: nn.Module, batch: AnswerBatch) -> tuple[Tensor, Tensor]:
    """Forward pass with logits only for the columns that count.

    Returns:
        loss (B,) float32, mean cross-entropy of each sample's labels; accuracy (B,) float32, share of labels that
        are the argmax.
    """
    columns = (batch.labels != IGNORED).any(dim=0).nonzero()[:, 0]
    logits = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=columns - 1).logits.float()
    labels = batch.labels[:, columns]
    counts = (labels != IGNORED).sum(dim=1).clamp(min=1)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    hits = (logits.argmax(dim=-1) == labels) & (labels != IGNORED)
    return loss.view_as(labels).sum(dim=1) / counts, hits.sum(dim=1) / counts
