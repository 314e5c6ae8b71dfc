"""The layer that replaces transformers' DynamicLayer: an ElasticCache plus what is known about its sequences."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..cache import ElasticCache
from ..errors import UnsupportedCache
from ..paging import LayerGroup, PagedCache
from ..router import BoundaryPool

Store = ElasticCache | PagedCache


class ElasticLayer(DynamicLayer):
    """One layer of a transformers cache. Columns are what transformers counts, padding included.

    Attributes:
        store: keys and values, real tokens only; `make_store` makes an empty one.
        group: what the layers of a cache share.
        is_decided: by sequence, has the route been decided?
        pool: pooled keys of sequences whose route is still open.
        is_waiting: the prompt arrives in chunks and its end is not there yet.
        is_claimed: routed attention is about to call `update`; the base model must not.
        record_past: transformers sets this while assisted decoding may take tokens back; nothing is evicted
            until the `crop` that follows each step.
    """

    is_croppable = True

    def __init__(self, make_store: Callable[[LayerGroup], Store], group: LayerGroup, *, num_pooled: int) -> None:
        super().__init__()
        self.make_store, self.group = make_store, group
        self.num_pooled = num_pooled
        self.is_claimed = self.record_past = False
        self._clear()

    def _clear(self) -> None:
        self.store = self.make_store(self.group)
        self.columns = 0
        self.real: Tensor | None = None  # (B, columns up to the last padding at least); what follows is real
        self.is_decided: list[bool] = []
        self.pool: BoundaryPool | None = BoundaryPool(self.num_pooled)
        self.pooled_later: list[tuple[Tensor, Tensor, Tensor]] = []
        self.is_waiting = False

    def activate_past_recording(self) -> None:
        """Called by transformers when tokens may be taken back."""
        self.record_past = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device for transformers; memory is taken when tokens arrive."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the new states; the attention function stores them, because it knows which are real.

        Raises:
            UnsupportedCache: the base model reads a cache that routed heads filled.
        """
        if not self.is_claimed:
            raise UnsupportedCache(
                "This cache was filled with routed heads, which the base model cannot read; start with an empty cache."
            )
        self.is_claimed = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def append(self, keys: Tensor, values: Tensor, real: Tensor | None, counts: list[int]) -> None:
        """Store (B, G, T, D) keys and values of new columns; `real` (B, T) bool marks the `counts` real tokens."""
        if real is not None:
            self.real = torch.cat([self._mark_real(real), real], dim=1)
        self.columns += keys.shape[2]
        self.store.append(keys, values, real, counts=counts)

    def advance(self, num_tokens: int) -> None:
        """Count columns that a captured step appended on the device, one real token a sequence each."""
        assert isinstance(self.store, PagedCache)
        self.store.advance(num_tokens)
        self.columns += num_tokens

    def _mark_real(self, like: Tensor) -> Tensor:
        """(B, columns) bool, on the device of `like` (B, ...): which columns are real."""
        known = like.new_ones(len(like), 0) if self.real is None else self.real
        return torch.cat([known, like.new_ones(len(like), self.columns - known.shape[1])], dim=1)

    def get_seq_length(self) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def reset(self) -> None:
        self._clear()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last columns; a negative count, or the final length as in older releases.

        Raises:
            CacheDepthError: sparse heads no longer hold what the shorter sequence needs.
        """
        count = int(tokens_to_remove)  # transformers 5.17 passes a tensor
        removed = -count if count <= 0 else max(0, self.columns - count)
        if not self.columns:
            return
        counts = [removed] * len(self.store.lengths)
        if self.real is not None and removed:
            counts = self._mark_real(self.real)[:, -removed:].sum(1).tolist()
        self.store.crop(counts)
        self.columns -= removed
        if self.real is not None:
            self.real = self.real[:, : self.columns]
        self.commit_pool(removed)
        if self.pool is not None:
            self.pool.crop(torch.tensor(self.store.lengths))
        self.store.evict()

    def commit_pool(self, removed: int = 0) -> None:
        """Pool the tokens that were held back while they could still be taken back."""
        for index, (keys, rank, is_valid) in enumerate(self.pooled_later):
            kept = keys.shape[1] - (removed if index == len(self.pooled_later) - 1 else 0)
            if self.pool is not None and kept > 0:
                self.pool.update(keys[:, :kept], rank[:, :kept], is_valid[:, :kept])
        self.pooled_later = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.store.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.columns:
            return
        indices = torch.arange(len(self.store.lengths))[indices.cpu()]
        self.store.select(indices.tolist())
        self.is_decided = [self.is_decided[i] for i in indices.tolist()]
        if self.real is not None:
            self.real = self.real[indices.to(self.real.device)]
        if self.pool is not None:
            self.pool.select(indices)


def claim_layer(cache: Cache, index: int, make: Callable[[LayerGroup], ElasticLayer]) -> ElasticLayer:
    """The routed layer `index` of a cache; an empty dynamic layer is replaced by one of ours.

    Raises:
        UnsupportedCache: static, quantised or offloaded caches, or one that the base model has filled.
    """
    if getattr(cache, "offloading", False):
        raise UnsupportedCache("Offloaded caches cannot hold routed heads; leave out cache_implementation='offloaded'.")
    if getattr(cache, "layer_class_to_replicate", None) not in (None, DynamicLayer) and index >= len(cache.layers):
        raise UnsupportedCache(f"{type(cache).__name__} cannot hold routed heads; pass a DynamicCache or none.")
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if isinstance(layer, ElasticLayer):
        layer.is_claimed = True
        return layer
    if type(layer) is not DynamicLayer:
        raise UnsupportedCache(
            f"{type(layer).__name__} of {type(cache).__name__} cannot hold routed heads, which need rows of different "
            "length; pass a DynamicCache or none, or use handle.disabled() for this call."
        )
    if layer.get_seq_length():
        raise UnsupportedCache(
            f"The cache already holds {layer.get_seq_length()} tokens of the base model; start with an empty one."
        )
    group = next((other.group for other in cache.layers if isinstance(other, ElasticLayer)), None)
    ours = make(group or LayerGroup())
    ours.is_claimed = True
    cache.layers[index] = ours
    return ours
