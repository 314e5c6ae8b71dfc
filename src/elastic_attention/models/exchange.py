"""What the layers of a model ask of a pack whose tokens several processes share."""

from typing import Protocol

from torch import Tensor


class TokenExchange(Protocol):
    """Shape letters: n of N tokens of a pack, S sequences, h of H query heads and g of G KV heads, D head dim.

    Small letters count what this process holds.
    """

    def take(self, hidden: Tensor, index: Tensor) -> Tensor:
        """Rows of the whole pack, on every process: hidden (1, n, width), index (S, m) -> (S, m, width)."""
        ...

    def deal(self, routes: Tensor) -> "HeadExchange":
        """The heads of a layer with these routes (S, G), dealt to the processes."""
        ...


class HeadExchange(Protocol):
    """The heads of one layer, spread over the processes."""

    @property
    def routes(self) -> Tensor:
        """Of my heads, (S, g)."""
        ...

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of my tokens -> my heads of all tokens: q (1, H, n, D) -> (1, h, N, D); k, v with G and g."""
        ...

    def to_tokens(self, out: Tensor) -> Tensor:
        """My heads of all tokens -> all heads of my tokens: (1, h, N, D) -> (1, H, n, D)."""
        ...
