"""Packed sequences: several that follow each other in one row, told apart by positions that start again.

Shape letters: N tokens of the row, S sequences.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UnsupportedModel
from ..kernels.spans import Spans, pack_whole

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> bool, may this query read this key? As transformers writes masks."""


def number_sequences(mask_function: MaskFunction, *, length: int, device: torch.device) -> Tensor:
    """Which sequence each token of a packed row belongs to, (1, N) int32 from 0.

    Transformers packs by a mask function. It is asked about each token and the tokens 1, 2, 4, ... places away on
    either side, in place of all N x N pairs.

    Raises:
        UnsupportedModel: the function is not causal order inside sequences that follow each other.
    """
    place = torch.arange(length, device=device)
    zero = place.new_zeros(())

    def sees(query: Tensor, key: Tensor) -> Tensor:
        return mask_function(zero, zero, query, key).broadcast_to(query.shape)

    is_first = torch.cat([zero[None] == 0, ~sees(place[1:], place[:-1])])
    start = torch.where(is_first, place, 0).cummax(0).values
    is_packed = sees(place, place).all()
    for distance in (2**i for i in range((length - 1).bit_length())):
        near, far = place[distance:], place[:-distance]
        is_packed &= (sees(near, far) == (far >= start[distance:])).all() & ~sees(far, near).any()
    if not bool(is_packed):
        raise UnsupportedModel(
            "Routed attention knows causal order, padding and packed sequences; bidirectional parts and overlays are "
            "not implemented. Pass a plain attention_mask, or position_ids that start again at 0 with each sequence."
        )
    return (is_first.cumsum(0) - 1).to(torch.int32)[None]


def span_sequences(numbers: Tensor) -> tuple[Spans, list[int]]:
    """Where the sequences lie that `number_sequences` found, and how long each is."""
    length = torch.bincount(numbers[0]).to(torch.int32)
    lengths = length.tolist()
    return pack_whole(length, max(lengths)), lengths
