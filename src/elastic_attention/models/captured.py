"""Decoding with one CUDA graph: the whole step of a model, for every routing and every length, replayed by the GPU.

Lengths, routes and page tables are device data, so one graph serves a whole answer. Greedy choice and sampling are part
of the graph; the host only looks for the end of the text now and then.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ElasticAttentionError, UnsupportedCache
from ..paging import PagedCache
from .cache_layer import ElasticLayer
from .replay import record_graph

if TYPE_CHECKING:
    from .handle import Handle

_LOOK_EVERY = 16  # steps between two looks for the end of the text
_WARM_UPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen.

    Attributes:
        do_sample: False takes the likeliest token.
        temperature: divides the logits, > 0.
        top_k: only the k likeliest tokens; None = all.
        top_p: only the likeliest tokens that hold this share of the probability, (0, 1]; None = all.

    Raises:
        ValueError: a value outside of its range; the message names it.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive; do_sample=False decodes greedily.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1].")

    def choose(self, logits: Tensor) -> Tensor:
        """Next tokens (B,) int64 for logits (B, vocabulary)."""
        if not self.do_sample:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            ordered, order = logits.softmax(-1).sort(descending=True)
            is_behind = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(torch.empty_like(is_behind).scatter(1, order, is_behind), float("-inf"))
        # The largest of p / e with e ~ Exp(1) is a sample of p; unlike torch.multinomial nothing here checks values.
        return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


class CapturedDecoder:
    """A decode step as a CUDA graph over a cache that a prefill has filled, and that nobody else changes meanwhile.

    Args:
        handle: of an attached model on a GPU.
        cache: what the prefill returned as `past_key_values`. Sequences too short to be routed stay full from here on.
        first_tokens: (B,) int64, the tokens that follow the prompts.
        max_new_tokens: steps that the cache gets memory for.
        sampling: how the next token is chosen.

    Attributes:
        tokens: (B, 1) int64 on the device, the tokens that the next step reads.
        logits: (B, vocabulary) of the last step.

    Raises:
        UnsupportedCache: a layer of the cache is no page pool (no GPU kernel, or a sliding layer of the base model), or
            the layers lie on several GPUs.
    """

    def __init__(
        self,
        handle: "Handle",
        cache: Any,
        first_tokens: Tensor,
        *,
        max_new_tokens: int,
        sampling: SamplingConfig | None = None,
    ) -> None:
        self.handle, self.cache, self.sampling = handle, cache, sampling or SamplingConfig()
        self._stores = [_check_layer(layer) for layer in cache.layers]
        _check_devices(self._stores)
        self._steps_left, self._steps_pending = max_new_tokens, 0
        for layer, store in zip(cache.layers, self._stores, strict=True):
            layer.is_decided, layer.pool = [True] * len(first_tokens), None
            store.reserve(max_new_tokens)
        self._moves = [store.moves for store in self._stores]
        self.tokens = first_tokens[:, None].clone()
        self._positions = self._stores[0].device_lengths[:, None].long()
        self._graph = self._capture()

    def step(self) -> Tensor:
        """Run one step; returns `tokens`, the tokens it chose, (B, 1), overwritten by the next step.

        Raises:
            ElasticAttentionError: `max_new_tokens` steps have run, or the tensors of the cache are others than those of
                the graph.
        """
        if not self._steps_left:
            raise ElasticAttentionError("The captured decoder has used up max_new_tokens; make one with more.")
        if [store.moves for store in self._stores] != self._moves:  # the graph would write where the cache was
            raise ElasticAttentionError("The cache has moved since the step was captured; make a new decoder.")
        self._graph.replay()
        self._steps_left -= 1
        self._steps_pending += 1
        return self.tokens

    def finish(self) -> None:
        """Bring the host's books up to date: lengths of the cache, and the report."""
        if self._steps_pending:
            for layer in self.cache.layers:
                layer.advance(self._steps_pending)
            self.handle.note_decoded(self.cache, self._steps_pending)
        self._steps_pending = 0

    def _run(self) -> Tensor:
        out = self.handle.model(
            input_ids=self.tokens,
            position_ids=self._positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def _take_step(self) -> Tensor:
        logits = self._run()
        self.tokens.copy_(self.sampling.choose(logits)[:, None])
        self._positions += 1
        return logits

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        lengths = [store.device_lengths.clone() for store in self._stores]
        with self.handle.without_books():
            for _ in range(_WARM_UPS):
                self.sampling.choose(self._run())
                self._take_back(lengths)
            graph, self.logits = record_graph(self.tokens.device, self._take_step)
        self._take_back(None)  # capturing ran the host's part of a step and not the device's
        return graph

    def _take_back(self, lengths: list[Tensor] | None) -> None:
        for i, (layer, store) in enumerate(zip(self.cache.layers, self._stores, strict=True)):
            layer.advance(-1)
            if lengths is not None:
                store.device_lengths.copy_(lengths[i])


def generate_captured(
    handle: "Handle",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    eos_token_ids: tuple[int, ...] = (),
    pad_token_id: int = 0,
) -> Tensor:
    """Prefill, then decode with one CUDA graph.

    Args:
        handle: of an attached model on a GPU.
        input_ids: (B, T) int64, left-padded where rows differ in length.
        attention_mask: (B, T) bool or integers, 1 = real; None = all real.
        max_new_tokens: at most this many new tokens a row, at least 1.
        sampling: how tokens are chosen; greedy by default.
        eos_token_ids: tokens that end a row.
        pad_token_id: fills rows behind their end.

    Returns:
        (B, T + new) int64, prompts included, as `generate` returns them.

    Raises:
        ValueError: `max_new_tokens` is less than 1.
        UnsupportedCache: as in `CapturedDecoder`.
    """
    from .generation import Prompt, tell_prompt

    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    choice, ends = sampling or SamplingConfig(), torch.tensor(eos_token_ids, device=input_ids.device)
    positions = None if attention_mask is None else (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), tell_prompt(handle, Prompt(num_columns=input_ids.shape[1])):
        handle.restart_report()
        out = handle.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        first = choice.choose(out.logits[:, -1])
        new = [first[:, None]]
        if max_new_tokens > 1:
            decoder = CapturedDecoder(
                handle, out.past_key_values, first, max_new_tokens=max_new_tokens - 1, sampling=choice
            )
            for i in range(1, max_new_tokens):
                if i % _LOOK_EVERY == 0 and eos_token_ids and _has_ended(new, ends):
                    break
                new.append(decoder.step().clone())
            decoder.finish()
    answer = torch.cat(new, dim=1)
    if eos_token_ids:
        is_end = torch.isin(answer, ends)
        is_behind = is_end.cumsum(1) - is_end.long() > 0
        answer = answer.masked_fill(is_behind, pad_token_id)[:, : int((~is_behind).sum(1).max())]
    return torch.cat([input_ids, answer], dim=1)


def _has_ended(new: list[Tensor], ends: Tensor) -> bool:
    return bool(torch.isin(torch.cat(new, dim=1), ends).any(1).all())


def _check_devices(stores: list[PagedCache]) -> None:
    devices = sorted({str(store.device_lengths.device) for store in stores})
    if len(devices) > 1:
        raise UnsupportedCache(f"A captured step runs on one GPU, the cache lies on {devices}: use `generate`.")


def _check_layer(layer: Any) -> PagedCache:
    if isinstance(layer, ElasticLayer) and isinstance(layer.store, PagedCache):
        return layer.store
    raise UnsupportedCache(
        f"A captured step needs every layer in a page pool, found {type(layer).__name__}: attach with backend='triton' "
        "or 'hopper' on a GPU, and use `generate` for models with sliding layers."
    )
