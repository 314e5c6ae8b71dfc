"""One packed forward: samples one after the other without padding.

Shape letters: N tokens of the pack, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.answers import IGNORED
from .encoding import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSample:
    """A sample as it stands in a pack: `tokens` (n,) int64 and its spans, counted from its own first token."""

    tokens: np.ndarray
    context: Span
    question: Span
    response: Span
    sample_id: int
    category: str
    task: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """Samples of one forward.

    Attributes:
        input_ids: (N,) int64.
        targets: (N,) int64, the token wanted after this position if it counts, else -100; never one of the next sample.
        position_ids: (N,) int64, from 0 in each sample.
        cu_seqlens: (S+1,) int32, edges of the samples.
        prompt_lengths: (S,) int64, tokens before the response.
        context, question, response: (S, 2) int64, [first, last) places of each part in the pack.
        sample_ids: (S,) int64, identity of each sample in the data.
        weights: (S,) float32, share of each sample in the loss of the whole step; over a step they add up to 1.
        categories, tasks: of each sample.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    prompt_lengths: Tensor
    context: Tensor
    question: Tensor
    response: Tensor
    sample_ids: Tensor
    weights: Tensor
    categories: tuple[str, ...]
    tasks: tuple[str, ...]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on `device`."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in values.items():
            values[name] = value.to(device) if isinstance(value, Tensor) else value
        return PackedBatch(**values)

    def __reduce__(self) -> tuple[Any, ...]:
        # By value. Torch sends each tensor as an open file, and the steps that workers read ahead have thousands.
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _restore, ({k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()},)

    def token_weights(self) -> Tensor:
        """(N,) float32: with a cross-entropy a token, their product sums to the step's weighted loss of this pack.

        A sample's loss is the mean over the tokens that count; a token that does not count weighs 0.
        """
        lengths = self.cu_seqlens.diff().long()
        sample = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        return torch.where(self.targets != IGNORED, (self.weights / self.count_targets())[sample], 0.0)

    def average_samples(self, values: Tensor) -> Tensor:
        """Mean of `values` (N,) over the tokens of each sample that count, (S,); the others must be 0."""
        return self.sum_samples(values) / self.count_targets()

    def sum_samples(self, values: Tensor) -> Tensor:
        """Sum of `values` (N,) over the tokens of each sample, (S,)."""
        return torch.segment_reduce(values, "sum", lengths=self.cu_seqlens.diff().long())

    def count_targets(self) -> Tensor:
        """(S,) float32, tokens of each sample that count, at least 1."""
        is_counted = (self.targets != IGNORED).float()  # whole numbers: exact up to 2^24 tokens
        return torch.segment_reduce(is_counted, "sum", lengths=self.cu_seqlens.diff().long()).clamp(min=1)


def _restore(values: dict[str, Any]) -> PackedBatch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return PackedBatch(**(values | tensors))


def join_samples(samples: Sequence[PackedSample], *, loss_on: str = "response") -> PackedBatch:
    """Put samples into a pack; `loss_on` "response" or "all" says which tokens count."""
    edges = np.cumsum([0, *(len(s.tokens) for s in samples)])
    targets = np.full(edges[-1], IGNORED, dtype=np.int64)
    for sample, begin in zip(samples, edges, strict=False):
        # The token at place i is wanted after place i - 1; nothing wants a sample's first token.
        first = 1 if loss_on == "all" else max(1, sample.response[0])
        targets[begin + first - 1 : begin + len(sample.tokens) - 1] = sample.tokens[first:]

    def places(part: str) -> Tensor:
        return torch.tensor([getattr(s, part) for s in samples]) + torch.from_numpy(edges[:-1, None])

    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([s.tokens for s in samples])),
        targets=torch.from_numpy(targets),
        position_ids=torch.cat([torch.arange(len(s.tokens)) for s in samples]),
        cu_seqlens=torch.from_numpy(edges.astype(np.int32)),
        prompt_lengths=torch.tensor([s.response[0] for s in samples]),
        context=places("context"),
        question=places("question"),
        response=places("response"),
        sample_ids=torch.tensor([s.sample_id for s in samples]),
        weights=torch.tensor([s.weight for s in samples], dtype=torch.float32),
        categories=tuple(s.category for s in samples),
        tasks=tuple(s.task for s in samples),
    )
