"""The only definitions of MSR and ESR (Elastic Attention, section 3.3 and Eq. 5)."""

from collections.abc import Sequence

from torch import Tensor

from .types import Pattern


def model_sparsity_ratio(routes: Tensor) -> Tensor:
    """MSR per sequence: mean over layers and KV heads of "is sparse".

    Args:
        routes: (B, L, G), bool or float in [0, 1]; 1 = sparse. Differentiable when float.

    Returns:
        (B,) in [0, 1], float32 (or the dtype of float routes).
    """
    values = routes if routes.is_floating_point() else routes.float()
    return values.mean(dim=(-2, -1))


def count_causal_pairs(start: int, stop: int) -> int:
    """Query-key pairs of causal attention for the queries at positions [start, stop)."""
    return (stop * (stop + 1) - start * (start + 1)) // 2


def count_read_pairs(pattern: Pattern, start: int, stop: int, *, num_heads: int, num_sparse: int) -> int:
    """Pairs read by `num_heads` heads of which `num_sparse` follow `pattern`, queries [start, stop)."""
    dense = count_causal_pairs(start, stop)
    return (num_heads - num_sparse) * dense + num_sparse * pattern.count_pairs(start, stop)


def effective_sparsity_ratio(read_pairs: Sequence[int] | int, causal_pairs: Sequence[int] | int) -> float | None:
    """ESR: 1 - pairs read / causal pairs, over all heads and layers.

    Args:
        read_pairs: query-key pairs that were read; several numbers, such as one a layer, are added.
        causal_pairs: those that dense causal attention reads, in the same way.

    Returns:
        A ratio in [0, 1]; None where there are no causal pairs.
    """
    read = read_pairs if isinstance(read_pairs, int) else sum(read_pairs)
    causal = causal_pairs if isinstance(causal_pairs, int) else sum(causal_pairs)
    return None if causal == 0 else 1.0 - read / causal


def effective_sparsity_ratio_last_layer(routes: Tensor, pattern: Pattern, num_tokens: int) -> Tensor:
    """ESR as in the paper's Eq. 5: pruned share of the LAST layer's heads, for comparison only.

    Args:
        routes: (B, L, G) bool.
        pattern: what sparse heads read.
        num_tokens: prompt length.

    Returns:
        (B,) float32.
    """
    pruned = 1.0 - pattern.count_pairs(0, num_tokens) / count_causal_pairs(0, num_tokens)
    return routes[:, -1].float().mean(dim=-1) * pruned
