"""`generate` whose single-token steps are replays of one CUDA graph, whatever chooses the tokens.

Decoding a token takes the host tens of milliseconds of Python, the device a few. Lengths, routes and page tables are
device data, so what one step launches serves all that follow. `captured` does the same with the choice in the graph.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..paging import PagedCache
from .cache_layer import ElasticLayer

if TYPE_CHECKING:
    from .handle import Handle

_logger = logging.getLogger(__name__)
_PLAIN_STEPS = 1  # before a capture; they load the kernels and give rows their pages
_RESERVED = 128  # tokens that the cache gets memory for at once
# What a graph leaves behind, some 20 MB, is of use to nobody until PyTorch's memory cache is emptied.
_GRAPHS_KEPT = 16
_graphs_made = itertools.count(1)
_VARYING = ("input_ids", "position_ids", "attention_mask", "cache_position", "past_key_values")
_EXTRAS = ("output_attentions", "output_hidden_states")


@contextlib.contextmanager
def replay_steps(handle: "Handle") -> Iterator[None]:
    """Inside, the model's forward replays single-token steps against a paged cache. Other calls run as they are."""
    model = handle.model
    before, steps = model.__dict__.get("forward"), _Steps(handle, model.forward)
    model.forward = functools.update_wrapper(steps, model.forward)
    try:
        yield
    finally:
        steps.finish()
        del model.forward
        if before is not None:
            model.forward = before


def can_capture(device: torch.device) -> bool:
    """Are there CUDA graphs?"""
    return device.type == "cuda"


class _Steps:
    """The forward of a model; it keeps the graph of the step that it captured last."""

    def __init__(self, handle: "Handle", forward: Callable[..., Any]) -> None:
        self._handle, self._forward = handle, forward
        self._step: _CapturedStep | None = None
        self._num_plain = 0  # steps in a row that could have been replayed
        self._has_memory = True  # for a graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        options = {key: value for key, value in kwargs.items() if key not in _VARYING and value is not None}
        if args or not _is_plain_step(kwargs, options):
            self._num_plain = 0
            return self._run(*args, **kwargs)
        if self._step is not None and not self._step.serves(kwargs, options):
            # A cache that moves by itself, as under beam search, is not captured again and again.
            self._num_plain = self._num_plain if self._step.is_used_up else 0
            self.finish()
        if self._step is None:
            if self._num_plain < _PLAIN_STEPS or not (self._handle.replays_steps and self._has_memory):
                self._num_plain += 1
                return self._run(**kwargs)
            try:
                self._step = _CapturedStep(self._handle, self._forward, kwargs, options)
            except torch.OutOfMemoryError:  # the next answer may find more
                self._has_memory = False
                return self._run(**kwargs)
            except RuntimeError as error:  # experts in float32, for one, whose loads the host reads
                _logger.warning("Steps of this model run one by one, because none can be captured: %s", error)
                self._handle.replays_steps = False
                return self._run(**kwargs)
        return self._step.replay(kwargs["input_ids"], kwargs["position_ids"])

    def finish(self) -> None:
        """Bring the books up to date and let the graph go."""
        if self._step is None:
            return
        self._step.close_books()
        self._step = None

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        self.finish()
        return self._forward(*args, **kwargs)


class _CapturedStep:
    """One step of a model as a CUDA graph, until the memory that the cache has for it is used up."""

    def __init__(
        self, handle: "Handle", forward: Callable[..., Any], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._handle, self._cache, self._options = handle, kwargs["past_key_values"], options
        self._stores: list[PagedCache] = [layer.store for layer in self._cache.layers]
        for store in self._stores:
            store.reserve(_RESERVED)
        self._moves = [store.moves for store in self._stores]
        self._left, self._pending = _RESERVED, 0
        self._ids, self._positions = kwargs["input_ids"].clone(), kwargs["position_ids"].clone()
        columns = [layer.columns for layer in self._cache.layers]
        try:
            with handle.without_books():
                self._graph, self._output = record_graph(
                    self._ids.device,
                    lambda: forward(
                        input_ids=self._ids, position_ids=self._positions, past_key_values=self._cache, **options
                    ),
                )
        finally:  # the host's part of a step has run, or of half a step, and nothing of the device's
            for layer, count in zip(self._cache.layers, columns, strict=True):
                layer.advance(count - layer.columns)

    @property
    def is_used_up(self) -> bool:
        """Has every step run that there is memory for?"""
        return self._left == 0

    def serves(self, kwargs: dict[str, Any], options: dict[str, Any]) -> bool:
        """Is the graph this step, with this cache as it lies in memory now?"""
        return (
            not self.is_used_up
            and kwargs["past_key_values"] is self._cache
            and kwargs["input_ids"].shape == self._ids.shape
            and kwargs["position_ids"].shape == self._positions.shape
            and options == self._options
            and [layer.store.moves for layer in self._cache.layers] == self._moves
        )

    def replay(self, ids: Tensor, positions: Tensor) -> Any:
        """Run the step for tokens (B, 1) at these positions; what the model returns."""
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._graph.replay()
        self._advance(1)
        self._left, self._pending = self._left - 1, self._pending + 1
        return type(self._output)(logits=self._output.logits.clone(), past_key_values=self._cache)

    def close_books(self) -> None:
        """Enter the steps into the handle's report."""
        if self._pending:
            self._handle.note_decoded(self._cache, self._pending)
        self._pending = 0

    def _advance(self, num_tokens: int) -> None:
        for layer in self._cache.layers:
            layer.advance(num_tokens)


def record_graph(device: torch.device, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """What `run` launches as a graph, and its result in the graph's memory. `run` has run before."""
    if next(_graphs_made) % _GRAPHS_KEPT == 0:
        torch.cuda.empty_cache()
    stream, current, graph = _capture_stream(device), torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    stream.wait_stream(current)
    # Not `torch.cuda.graph`, which waits for the device and empties its memory cache, once an answer.
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = run()
        except BaseException:
            _abandon(graph, pool)
            raise
        graph.capture_end()
    current.wait_stream(stream)
    return graph, result


def _abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """End a capture that failed.

    One that the host has broken cannot be ended, and PyTorch then leaves its memory pool open: it would keep that
    memory, and from then on all memory that several streams have used.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _is_plain_step(kwargs: dict[str, Any], options: dict[str, Any]) -> bool:
    """One token a sequence against pages, whose routes are settled, and nothing asked for but logits."""
    ids, positions, cache = (kwargs.get(key) for key in ("input_ids", "position_ids", "past_key_values"))
    if ids is None or positions is None or cache is None or not ids.shape[1] == positions.shape[-1] == 1:
        return False
    if any(isinstance(value, Tensor) for value in options.values()) or any(options.get(key) for key in _EXTRAS):
        return False
    return bool(cache.layers) and all(_is_settled(layer, ids.device) for layer in cache.layers)


def _is_settled(layer: Any, device: torch.device) -> bool:
    return (
        isinstance(layer, ElasticLayer)
        and isinstance(layer.store, PagedCache)
        and layer.columns > 0
        and layer.pool is None
        and not layer.record_past
        and layer.store.device_lengths.device == device
    )
