"""Asking a batch of samples: greedy answers, or what the model would have said along given ones.

Shape letters: B samples, T columns.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.answers import pad_token
from ..models.generation import Prompt, tell_prompt
from ..models.loading import new_cache
from ..tasks.suite import Answer, SuiteSample
from .answering import FirstTokenClock
from .readers import Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer and what it cost.

    Attributes:
        is_cut: the model was still speaking, and had said no stop text, when the longest answer was reached.
        books: what `Reader.report` gives. What is decoded counts up to the batch's longest answer, because all its
            rows are read until then.
        prefill_seconds, decode_seconds: of the whole batch, divided by its rows.
    """

    answer: Answer
    is_cut: bool
    books: dict[str, Any]
    prefill_seconds: float
    decode_seconds: float


def ask_samples(reader: Reader, tokenizer: Any, samples: Sequence[SuiteSample]) -> list[Reply]:
    """Ask samples that have the same `max_new_tokens` and `min_new_tokens`, and all or none of them target tokens."""
    # A number of each sample: what is drawn at random for one should not come again in another task or length.
    sample_ids = [zlib.crc32(f"{x.task} {x.length} {x.index}".encode()) for x in samples]
    with reader.reading(sample_ids) as model, torch.inference_mode():
        ids, mask = pad_prompts(samples, pad_token(tokenizer), model.device)
        if samples[0].target_ids:
            return _follow_targets(reader, model, tokenizer, samples, ids, mask)
        return _generate(reader, model, tokenizer, samples, ids, mask)


def pad_prompts(samples: Sequence[SuiteSample], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask (B, T) int64, padded on the left."""
    width = max(len(sample.prompt_ids) for sample in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, width - len(sample.prompt_ids) :] = torch.tensor(sample.prompt_ids)
        mask[row, width - len(sample.prompt_ids) :] = 1
    return ids.to(device), mask.to(device)


def cut_at_stop(text: str, stop: Sequence[str], start: int = 0) -> str:
    """The text before the first of the stop texts that begins at character `start` or later."""
    places = [place for mark in stop if (place := text.find(mark, start)) >= 0]
    return text[: min(places)] if places else text


def _generate(
    reader: Reader, model: Any, tokenizer: Any, samples: Sequence[SuiteSample], ids: Tensor, mask: Tensor
) -> list[Reply]:
    first, clock = samples[0], FirstTokenClock()
    stops = StopTexts(tokenizer, samples, ids.shape[1])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=first.max_new_tokens,
        min_new_tokens=first.min_new_tokens or None,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        pad_token_id=pad_token(tokenizer),
        streamer=clock,
        begin_suppress_tokens=list_unsaid_first(tokenizer, first) or None,
        stopping_criteria=[stops] if any(sample.stop for sample in samples) else None,
    )
    rows = output[:, ids.shape[1] :].tolist()
    stopped = time.perf_counter()
    arrived, ends = clock.first or stopped, find_ends(model)
    spoken = [_cut_behind_end(row[:size], ends) for row, size in zip(rows, stops.sizes, strict=True)]
    # Rows are as long as the longest answer, for the base model as for routed heads.
    books = reader.report([len(s.prompt_ids) for s in samples], [len(row) for row in rows])
    replies = []
    for number, (sample, tokens) in enumerate(zip(samples, spoken, strict=True)):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        said = cut_at_stop(text, sample.stop, stops.count_kept(sample, tokens))
        has_ended = tokens[-1] in ends or len(said) < len(text)
        replies.append(
            Reply(
                answer=Answer(text=said, token_ids=tuple(tokens)),
                is_cut=len(tokens) == sample.max_new_tokens and not has_ended,
                books={key: values[number] for key, values in books.items()},
                prefill_seconds=(arrived - clock.started) / len(samples),
                decode_seconds=(stopped - arrived) / len(samples),
            )
        )
    return replies


class StopTexts:
    """What tells `generate` that rows have said a stop text, so that nothing is generated behind it.

    Attributes:
        sizes: tokens of each row when its first stop text was there, None where there is none.
    """

    def __init__(self, tokenizer: Any, samples: Sequence[SuiteSample], num_columns: int) -> None:
        self.tokenizer, self.samples, self.num_columns = tokenizer, samples, num_columns
        self.sizes: list[int | None] = [None] * len(samples)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done: (B,) bool; called after each token with all tokens so far, (B, T)."""
        for row, tokens in enumerate(input_ids[:, self.num_columns :].tolist()):
            sample = self.samples[row]
            if self.sizes[row] is None and sample.stop:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if len(cut_at_stop(text, sample.stop, self.count_kept(sample, tokens))) < len(text):
                    self.sizes[row] = len(tokens)
        return torch.tensor([size is not None for size in self.sizes], device=input_ids.device)

    def count_kept(self, sample: SuiteSample, tokens: Sequence[int]) -> int:
        """Characters of the tokens that an answer has at least; no stop text begins in them."""
        return len(self.tokenizer.decode(list(tokens[: sample.min_new_tokens]), skip_special_tokens=True))


def list_unsaid_first(tokenizer: Any, sample: SuiteSample) -> list[int]:
    """Tokens that no answer begins with: stop texts, where a token must stand before them (as in LongBench)."""
    if not sample.min_new_tokens:
        return []
    return [tokenizer(mark, add_special_tokens=False)["input_ids"][-1] for mark in sample.stop]


def find_ends(model: Any) -> set[int]:
    """The tokens that end an answer of this model."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _cut_behind_end(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


def _follow_targets(
    reader: Reader, model: Any, tokenizer: Any, samples: Sequence[SuiteSample], ids: Tensor, mask: Tensor
) -> list[Reply]:
    """Prompts in one forward, then the answers' tokens through the cache, as decoding would have read them."""
    began = time.perf_counter()
    longest = max(len(sample.target_ids) for sample in samples)
    targets = torch.full((len(samples), longest), pad_token(tokenizer))
    for row, sample in enumerate(samples):
        targets[row, : len(sample.target_ids)] = torch.tensor(sample.target_ids)
    targets, cache = targets.to(ids.device), new_cache(model)
    told = contextlib.nullcontext() if reader.is_dense else tell_prompt(reader.handle, Prompt(num_columns=ids.shape[1]))
    with told:
        if not reader.is_dense:
            reader.handle.restart_report()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits
        said = [logits.argmax(dim=-1)]
        said[0].cpu()  # a GPU is through with the prompt when the host has its token
        arrived = time.perf_counter()
        if longest > 1:
            mask = torch.cat([mask, mask.new_ones(len(samples), longest - 1)], dim=1)
            positions = positions[:, -1:] + torch.arange(1, longest, device=ids.device)
            logits = model(
                input_ids=targets[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache
            ).logits
            said.append(logits.argmax(dim=-1))
        rows = torch.cat(said, dim=1).tolist()
    stopped = time.perf_counter()
    books = reader.report([len(s.prompt_ids) for s in samples], [longest] * len(samples))
    replies = []
    for number, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        tokens = tuple(row[: len(sample.target_ids)])
        replies.append(
            Reply(
                answer=Answer(text=tokenizer.decode(list(tokens), skip_special_tokens=True), token_ids=tokens),
                is_cut=False,
                books={key: values[number] for key, values in books.items()},
                prefill_seconds=(arrived - began) / len(samples),
                decode_seconds=(stopped - arrived) / len(samples),
            )
        )
    return replies
