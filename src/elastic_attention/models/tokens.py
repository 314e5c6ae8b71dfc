"""The tokens of one forward pass, seen from one layer: which are real, which are prompt, what came before."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.spans import Spans
from .exchange import TokenExchange
from .packing import span_sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Shape letters: B sequences, T columns of this forward. Packed sequences share one row of T columns.

    Attributes:
        real: (B, T) bool on the model's device, None = no padding.
        spans: where the real tokens of each sequence lie; None without padding or packing, or if a row has holes.
        before: real tokens of each sequence before this forward.
        counts: real tokens of each sequence in this forward.
        prompt_counts: how many of them belong to a prompt.
        prompt_columns: how many of the T columns belong to a prompt; the others were generated.
        completes_prompt: the prompt ends with this forward (a chunk of a longer prompt does not).
        exchange: where this process holds a part of the tokens only, the way to the others.
    """

    real: Tensor | None
    spans: Spans | None
    before: list[int]
    counts: list[int]
    prompt_counts: list[int]
    num_columns: int
    prompt_columns: int
    completes_prompt: bool
    exchange: TokenExchange | None = None

    @classmethod
    def decoded(cls, before: list[int], num_columns: int) -> "Tokens":
        """Generated tokens without padding, `num_columns` a sequence."""
        batch = len(before)
        return cls(
            real=None,
            spans=None,
            before=before,
            counts=[num_columns] * batch,
            prompt_counts=[0] * batch,
            num_columns=num_columns,
            prompt_columns=0,
            completes_prompt=True,
        )

    @classmethod
    def packed(cls, spans: Spans, lengths: list[int], exchange: TokenExchange | None = None) -> "Tokens":
        """Whole sequences of these lengths that follow each other in one row."""
        return cls(
            real=None,
            spans=spans,
            before=[0] * len(lengths),
            counts=lengths,
            prompt_counts=lengths,
            num_columns=sum(lengths),
            prompt_columns=sum(lengths),
            completes_prompt=True,
            exchange=exchange,
        )

    @property
    def is_packed(self) -> bool:
        """Do the sequences follow each other in one row?"""
        return self.spans is not None and self.spans.is_packed

    @property
    def has_spans(self) -> bool:
        """Is there more to tell than one whole sequence a row: padding or packing?"""
        return self.real is not None or self.spans is not None

    def real_mask(self, batch: int, device: torch.device) -> Tensor:
        """`real` as a tensor, (B, T) bool."""
        if self.real is not None:
            return self.real
        return torch.ones(batch, self.num_columns, dtype=torch.bool, device=device)


class TokenReader:
    """Reads the tokens of a forward once, not once a layer, since the host must wait for a mask.

    Attributes:
        memory: what else the layers of a forward compute once.
    """

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {}
        self._mask: Tensor | None = None
        self._facts: dict[str, Any] | None = None
        self._tokens: Tokens | None = None
        self._given: Tokens | None = None

    def forget(self) -> None:
        """A new forward begins."""
        self._mask = self._facts = self._tokens = None
        self.memory = {}

    @contextmanager
    def given(self, tokens: Tokens) -> Iterator[None]:
        """Inside, these are the tokens, whatever a layer sees of them."""
        self._given = tokens
        try:
            yield
        finally:
            self._given = None

    def read(self, mask: Tensor | None, **facts: Any) -> Tokens:
        """`read_tokens` of these arguments, from memory where they are those of the layer before."""
        if self._given is not None:
            return self._given
        if self._tokens is None or self._mask is not mask or self._facts != facts:
            self._mask, self._facts, self._tokens = mask, facts, read_tokens(mask, **facts)
            self.memory = {}
        return self._tokens


def read_tokens(
    mask: Tensor | None, *, batch: int, num_columns: int, past_columns: int, before: list[int], prompt_end: int | None
) -> Tokens:
    """Tokens of a forward.

    Args:
        mask: (B, >= past_columns + num_columns) bool padding mask, (1, T) int32 numbers of packed sequences, or None.
        past_columns: columns in the cache.
        before: real tokens in the cache, by sequence.
        prompt_end: column at which the prompt ends; None: several columns at once, or the first one, are a prompt.

    Raises:
        ValueError: the cache holds another number of sequences.
    """
    if mask is not None and mask.dtype == torch.int32:
        return _read_packed(mask)
    if len(before) != batch:
        raise ValueError(
            f"The cache holds {len(before)} sequences, but {batch} were passed; start with an empty cache."
        )
    if prompt_end is None:
        prompt_columns = num_columns if num_columns > 1 or past_columns == 0 else 0
        completes = True
    else:
        prompt_columns = max(0, min(num_columns, prompt_end - past_columns))
        completes = past_columns + num_columns >= prompt_end
    real, spans = None, None
    counts, prompt_counts = [num_columns] * batch, [prompt_columns] * batch
    if mask is not None:
        recent = mask[:, past_columns : past_columns + num_columns]
        total, first = recent.sum(1), recent.int().argmax(1)
        last = num_columns - 1 - recent.flip(1).int().argmax(1)
        in_prompt, has_holes = recent[:, :prompt_columns].sum(1), (total > 0) & (last - first + 1 > total)
        counts, prompt_counts, holes = torch.stack([total, in_prompt, has_holes.long()]).tolist()
        if min(counts) < num_columns:
            real = recent
            spans = None if any(holes) else _make_spans(first, total, num_columns)
    return Tokens(
        real=real,
        spans=spans,
        before=before,
        counts=counts,
        prompt_counts=prompt_counts,
        num_columns=num_columns,
        prompt_columns=prompt_columns,
        completes_prompt=completes,
    )


def _read_packed(numbers: Tensor) -> Tokens:
    return Tokens.packed(*span_sequences(numbers))


def _make_spans(first: Tensor, length: Tensor, num_columns: int) -> Spans:
    start, length = first.int(), length.int()
    return Spans(
        query_start=start,
        query_length=length,
        key_start=start,
        key_length=length,
        is_packed=False,
        max_query_length=num_columns,
    )
