"""The gradient of heads that read everything, by cuDNN, head by head beside kernels that leave those heads out.

On Hopper GPUs cuDNN takes two thirds of the time of our kernels for long sequences. It adds up dQ in whatever order its
programs finish, so equal calls differ in the last bits; who wants it asks for it.

Shape letters: B batch, T queries, S keys, H query heads, G KV heads, D head dim, n tokens of a sequence.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .partial import PartState, attend_part_backward
from .spans import Spans

LEFT_OUT = 2.0  # in the place of a route: somebody else computes this head
LEAST_TOKENS = 16_384  # below, our kernels, which take all heads at once, are as fast
_STEPS = 16  # lengths between a power of two and the next; cuDNN plans each one for a tenth of a second


def has_full_gradients(q: Tensor) -> bool:
    """Does cuDNN compute gradients of these queries (B, H, T, D), and faster than our kernels do?"""
    if q.device.type != "cuda" or torch.version.hip is not None or not torch.backends.cudnn.is_available():
        return False
    is_supported = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] in (64, 128)
    return is_supported and torch.cuda.get_device_capability(q.device)[0] == 9


class FullHeads:
    """The heads that read everything, of sequences long enough to be worth a call of their own.

    Args:
        route: (sequences, G) float32; exactly 0 = full.
        spans, q, k: as in `blend_triton`.

    Attributes:
        others: the routes with `LEFT_OUT` for these heads; on the device, without a wait.
    """

    def __init__(self, route: Tensor, spans: Spans | None, q: Tensor, k: Tensor) -> None:
        whole = (0, q.shape[2], 0, k.shape[2])
        if spans is None:
            places = torch.tensor([whole] * len(route), dtype=torch.int32, device=q.device)
        else:
            columns = spans.query_start, spans.query_length, spans.key_start, spans.key_length
            places = torch.stack([x.int() for x in columns], dim=1)
        is_apt = (places[:, 1] == places[:, 3]) & (places[:, 1] >= LEAST_TOKENS)
        is_taken = (route == 0) & is_apt[:, None]
        self.others = torch.where(is_taken, LEFT_OUT, route)
        self._is_packed = spans is not None and spans.is_packed
        self._facts = torch.cat([places, is_taken.int()], dim=1)
        self._arrival: torch.cuda.Event | None = None
        if self._facts.is_cuda:  # the copy is under way while other heads are computed
            host = torch.empty(self._facts.shape, dtype=torch.int32, pin_memory=True)
            self._facts = host.copy_(self._facts, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def write_gradients(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
        results: tuple[Tensor, Tensor, Tensor],
    ) -> None:  # fmt: skip
        """Write these heads' part of dq (B, H, T, D), dk and dv (B, G, S, D), the `results`.

        Args:
            grad, out: (B, H, T, D), the gradient of the output and the output, where all heads are full.
            lse: (B, H, T) float32, natural logarithm.
        """
        group = q.shape[1] // k.shape[1]
        for b, head, queries, keys in self._list():
            heads = slice(head * group, (head + 1) * group)
            mine = (x[b : b + 1, heads, queries] for x in (grad, q, out, lse))
            read = (x[b : b + 1, head : head + 1, keys] for x in (k, v))
            found = _differentiate(*mine, *read, scale=scale)
            results[0][b, heads, queries] = found[0][0]
            for result, gradient in zip(results[1:], found[1:], strict=True):
                result[b, head, keys] = gradient[0, 0]

    def _list(self) -> Iterator[tuple[int, int, slice, slice]]:
        if self._arrival is not None:
            self._arrival.synchronize()
        for row, (first, taken, start, length, *are_mine) in enumerate(self._facts.tolist()):
            for head, is_mine in enumerate(are_mine):
                if is_mine:
                    b = 0 if self._is_packed else row
                    yield b, head, slice(first, first + taken), slice(start, start + length)


def _differentiate(
    grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of one causal sequence: grad, q, out (1, h, n, D), lse (1, h, n), k and v (1, 1, n, D)."""
    if q.device.type == "cpu":
        return attend_part_backward(grad, q, k, v, out, lse, PartState(), is_causal=True, scale=scale)
    length = q.shape[2]
    padded = round_length(length)

    def pad(x: Tensor) -> Tensor:
        # Rows behind the end have no gradient and are seen by nobody. One layout, for a plan is made for the first.
        whole = x.new_zeros(1, x.shape[1], padded, x.shape[3])
        whole[:, :, :length] = x
        return whole

    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # of dropout, of which there is none
    found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(pad(x) for x in (grad, q, k, v, out, lse[..., None])),
        *(seed, seed, None, None, None, padded, padded, 0.0, True),
        scale=scale,
    )
    dq, dk, dv = (x[:, :, :length] for x in found)
    return dq, dk, dv


def round_length(length: int) -> int:
    """The length that a sequence is padded to: few different ones, and a few per cent more at most."""
    step = max(1, (1 << (length.bit_length() - 1)) // _STEPS)
    return -(-length // step) * step
