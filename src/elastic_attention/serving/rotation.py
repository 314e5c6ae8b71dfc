"""Taking a rotation back: an engine keeps rotated keys, a router wants them as they were before."""

from torch import Tensor

from ..router.attention_router import FULL, SPARSE, AttentionRouter


def undo_rotation(keys: Tensor, cos_sin: Tensor, *, is_interleaved: bool) -> Tensor:
    """Keys before RoPE, in float32.

    Args:
        keys: (..., G, D), rotated in their first 2r dimensions.
        cos_sin: (..., 2r), cosines then sines of r frequencies at each key's position, as they were applied; a scale on
            both (YaRN) is taken back too.
        is_interleaved: dimensions 2i and 2i + 1 turn together (GPT-J), otherwise i and i + r (NeoX, Llama).
    """
    keys = keys.float()
    half = cos_sin.shape[-1] // 2
    cos, sin = (part.unsqueeze(-2) for part in cos_sin.float().split(half, dim=-1))
    scale = cos.square() + sin.square()
    turned, rest = keys[..., : 2 * half], keys[..., 2 * half :]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if is_interleaved else turned.split(half, dim=-1)
    first, second = (first * cos + second * sin) / scale, (second * cos - first * sin) / scale
    result = keys.clone()
    if is_interleaved:
        result[..., 0 : 2 * half : 2], result[..., 1 : 2 * half : 2] = first, second
    else:
        result[..., :half], result[..., half : 2 * half] = first, second
    result[..., 2 * half :] = rest
    return result


def boundary_positions(num_tokens: int, num_pooled: int, *, count_overlap_twice: bool = False) -> list[int]:
    """Positions of the first n and the last n of `num_tokens` tokens; their overlap once, or twice."""
    first = range(min(num_pooled, num_tokens))
    last = range(max(0, num_tokens - num_pooled), num_tokens)
    return [*first, *last] if count_overlap_twice else sorted({*first, *last})


def decide_routes(router: AttentionRouter, pooled: Tensor, budgets: Tensor) -> Tensor:
    """`AttentionRouter.forward` with a budget of its own for each sequence.

    Args:
        pooled: (B, G, D) mean boundary keys, or (B, 1, D) the mean boundary query of all heads for a layer router.
        budgets: (B,) float32.

    Returns:
        (B, G) or (B, 1) bool, True = sparse.
    """
    logits = router.logits(pooled)
    return logits[..., SPARSE] + budgets[:, None] > logits[..., FULL]
