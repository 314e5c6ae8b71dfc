"""Cross-entropy of hidden states against a vocabulary, without all logits in memory at once.

Shape letters: N tokens, D hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..models.answers import IGNORED


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int = 1024) -> Tensor:
    """The loss of each token, -log softmax(hidden @ weight.T)[target], in chunks of tokens.

    Memory holds the logits of one chunk, in the forward and, where they are computed once more, in the backward. Tokens
    that do not count cost nothing. Without atomics: equal calls give equal bits.

    Args:
        hidden: (N, D), final hidden states, already scaled where a model scales its logits.
        weight: (V, D), of the output layer, same dtype.
        targets: (N,) int64, the token wanted after each position, or -100 where none counts.
        chunk_tokens: tokens of a chunk.

    Returns:
        (N,) float32 (float64 for float64 inputs), 0 where no token counts; differentiable in `hidden` and `weight`.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (N, D) and (V, D).")
    if targets.shape != hidden.shape[:1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"targets {tuple(targets.shape)} must be ({len(hidden)},), and hidden ({hidden.dtype}) of the dtype of "
            f"weight ({weight.dtype})."
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1.")
    places = (targets != IGNORED).nonzero()[:, 0]
    losses = _LinearCrossEntropy.apply(hidden[places], weight, targets[places], chunk_tokens)
    return losses.new_zeros(len(hidden)).index_copy(0, places, losses)


@torch.no_grad()
def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int = 1024) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` of tokens, and whether each is what greedy decoding would take, without gradients.

    Returns:
        losses (N,) float32, 0 where no token counts; is_right (N,) bool, False there.
    """
    losses = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens)
    places = (targets != IGNORED).nonzero()[:, 0]
    is_right = torch.zeros_like(targets, dtype=torch.bool)
    for part in places.split(chunk_tokens):
        is_right[part] = (hidden[part] @ weight.T).argmax(dim=1) == targets[part]
    return losses, is_right


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        normalizers = torch.empty(len(hidden), dtype=precise, device=hidden.device)
        wanted = torch.empty_like(normalizers)
        for i in range(0, len(hidden), chunk_tokens):
            part = slice(i, i + chunk_tokens)
            logits = (hidden[part] @ weight.T).to(precise)
            normalizers[part] = logits.logsumexp(dim=1)
            wanted[part] = logits.gather(1, targets[part, None])[:, 0]
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.chunk_tokens = chunk_tokens
        return normalizers - wanted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if needs_weight else None
        for i in range(0, len(hidden), ctx.chunk_tokens):
            part = slice(i, i + ctx.chunk_tokens)
            # The gradient of the logits, softmax - one at the target, in place of the logits.
            delta = (hidden[part] @ weight.T).to(normalizers.dtype)
            delta.sub_(normalizers[part, None]).exp_()
            delta.scatter_add_(1, targets[part, None], torch.full_like(delta[:, :1], -1.0))
            delta = delta.mul_(grads[0][part, None]).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(delta, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += delta.T @ hidden[part]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None
