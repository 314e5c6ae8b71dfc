"""Which functions touch the pages: Triton kernels on a GPU, plain PyTorch elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import plain


@dataclass(frozen=True, kw_only=True, slots=True)
class PageVerbs:
    """What a device offers.

    Attributes:
        append_token, compact_rows: see `kernels.triton.paging`.
        decode_paged: see `kernels.triton.decode`.
        make_workspace: (q, G, page_size) -> scratch memory of `decode_paged`.
        least_page: the fewest tokens of a page that they take.
    """

    append_token: Callable[..., None]
    compact_rows: Callable[..., None]
    decode_paged: Callable[..., Tensor]
    make_workspace: Callable[[Tensor, int, int], Any]
    least_page: int


PLAIN = PageVerbs(
    append_token=plain.append_token,
    compact_rows=plain.compact_rows,
    decode_paged=plain.decode_paged,
    make_workspace=lambda q, num_kv_heads, page_size: None,
    least_page=1,
)


def kernel_verbs() -> PageVerbs:
    """The Triton kernels; imports triton."""
    from ..kernels.triton import decode, paging

    return PageVerbs(
        append_token=paging.append_token,
        compact_rows=paging.compact_rows,
        decode_paged=decode.decode_paged,
        make_workspace=decode.DecodeWorkspace.for_queries,
        least_page=decode.LEAST_PAGE,
    )


def verbs_for(device: torch.device) -> PageVerbs:
    """The verbs for tensors on `device`."""
    return kernel_verbs() if device.type == "cuda" else PLAIN
