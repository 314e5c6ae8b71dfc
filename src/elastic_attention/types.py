"""Plain data that travels between the layers of the package.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Pattern(Protocol):
    """What a sparse pattern must answer. Positions count the real tokens of one sequence from 0."""

    name: str
    num_pinned_tokens: int
    """Tokens at the start that are never dropped."""
    dense_tokens: int
    """A sequence of up to this many tokens reads everything all the same."""

    def is_visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bool mask, broadcast of the two int tensors: may this query read this key?"""
        ...

    def count_pairs(self, start: int, stop: int) -> int:
        """Query-key pairs that the queries at positions [start, stop) read."""
        ...

    def count_evicted(self, num_tokens: int) -> int:
        """Tokens behind the pinned ones that may be dropped once `num_tokens` are cached."""
        ...

    def count_held(self, num_tokens: int) -> int:
        """Tokens that a sequence of `num_tokens` must keep so that it can be continued."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardRecord:
    """Routes of one forward pass, by layer index.

    Attributes:
        routes: layer index -> (B, G); 1 or True = the KV head is sparse for this sequence. Float with a
            gradient while routes are sampled for training, bool otherwise.
    """

    routes: dict[int, Tensor] = field(default_factory=dict)

    def stack(self) -> Tensor:
        """Routes of all routed layers, (B, L_routed, G), layers in ascending order."""
        return torch.stack([self.routes[layer] for layer in sorted(self.routes)], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Rows of a cache, (sequence, KV head) pairs, one behind the other.

    Attributes:
        keys, values: (N, D).
        starts, lengths: (B * G,) int32 on the device, first token and tokens of each row.
    """

    keys: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor


class HeadRoutes:
    """Routes of one layer, 1 or True = sparse, on the device that decided them.

    Where that is a GPU, a copy to the host starts at once and is waited for only when `host` is called, so that
    deciding routes never stalls a prefill.

    Args:
        values: (B, G) bool, or float in [0, 1] while routes are sampled for training.

    Attributes:
        values: as given.
        is_sampled: values are float.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.is_sampled = values.is_floating_point()
        self._copies = {values.device: values}
        self._host: Tensor | None = values if values.device.type == "cpu" else None
        self._arrival: torch.cuda.Event | None = None
        if values.device.type == "cuda" and not self.is_sampled:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(values.device))  # the stream of the copy

    @property
    def is_given_full(self) -> bool:
        """Does the host know, without any wait whatever the moment, that no head is sparse?"""
        return not self.is_sampled and self.values.device.type == "cpu" and not bool(self.values.any())

    @property
    def has_arrived(self) -> bool:
        """Would `host` return without a wait?"""
        if self._arrival is not None and self._arrival.query():
            self._arrival = None
        return self._host is not None and self._arrival is None

    def host(self) -> Tensor:
        """(B, G) bool on the host; waits for it where needed. Sampled routes are rounded."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None  # nobody may ask it while a graph is captured
        if self._host is None:
            self._host = self.values.detach().cpu()
        return self._host.detach() > 0.5 if self.is_sampled else self._host

    def on(self, device: torch.device) -> Tensor:
        """The values on `device`, copied at most once."""
        if device not in self._copies:
            self._copies[device] = stage(self.values, device)
        return self._copies[device]


def stage(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Small host data on `device`, copied without making the host wait for the device."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # an expanded tensor has no memory to pin
    return tensor.to(device)
