"""The routers of a model as one GPU kernel a layer, sharing the weights of the modules."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..router import RouterStack

if TYPE_CHECKING:
    from ..kernels.triton.router import RouterWeights


class FusedRouters:
    """Head routers behind `kernels.triton.router`; imports triton when it is first asked.

    Args:
        routers: the modules; a layer's weights are found once a device, and in-place changes are seen.
    """

    def __init__(self, routers: RouterStack) -> None:
        self._routers = routers
        self._weights: dict[int, RouterWeights] = {}

    def route(self, index: int, keys: Tensor, counts: Tensor, *, budget: float) -> Tensor:
        """Routes (B, G) bool of layer `index` for keys before RoPE (B, m, G, D) that count `counts` (B, m) times."""
        from ..kernels.triton.router import RouterWeights, route_fused

        if index not in self._weights or self._weights[index].task_in.device != keys.device:
            self._weights[index] = RouterWeights.from_state(self._routers[index].to(keys.device).state_dict())
        return route_fused(keys, counts, self._weights[index], budget)[0]
