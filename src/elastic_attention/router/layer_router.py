"""The Layer Router of one layer: one decision for all of its heads (Flux Attention, section 3)."""

from torch import Tensor

from .attention_router import AttentionRouter
from .sampling import RouteSampler


class LayerRouter(AttentionRouter):
    """Context encoder (`task_mlp`) and router head (`router_mlp`) on the mean query of a layer. Runs in float32.

    The modules are those of the head router with the widths of `RouterConfig.for_head_dim(d, granularity="layer")`.
    """

    def forward(
        self, pooled: Tensor, *, layer: int, budget: float = 0.0, sampler: RouteSampler | None = None
    ) -> Tensor:
        """Decide once per sequence.

        Args:
            pooled: (B, H, D) mean boundary query before RoPE of each head, or (B, 1, D), their mean over the heads.
            layer, budget, sampler: as in `AttentionRouter.forward`.

        Returns:
            (B, 1): bool without a sampler, float32 straight-through with one; it counts for every KV head.
        """
        return super().forward(average_heads(pooled, dim=1), layer=layer, budget=budget, sampler=sampler)


def average_heads(states: Tensor, dim: int) -> Tensor:
    """Mean over the heads in float32; the dimension stays, with size 1."""
    return states.float().mean(dim, keepdim=True)
