"""Gumbel straight-through sampling of routes (Elastic Attention, Eq. 10-14).

Noise is a function of (seed, step, sample id, layer, KV head) and nothing else: batch order, accumulation,
sharding and recomputation for gradient checkpointing cannot change it.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_EPSILON = 1e-8


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 tensors; multiplication wraps around, shifts are logical."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _wrap(number: int) -> int:
    """The int64 with the same last 64 bits, so that every seed of a recipe is one."""
    return (number + 2**63) % 2**64 - 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteNoise:
    """Source of uniform noise.

    Attributes:
        seed, step: of the run.
        sample_ids: (B,) int64, identity of each sample in the data, not its place in the batch.
        num_layers: layers whose noise is made at once, because small operations cost the host; others have theirs too.
    """

    seed: int
    step: int
    sample_ids: Tensor
    num_layers: int = 1
    _made: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def uniform(self, layer: int, num_kv_heads: int, num_classes: int = 2) -> Tensor:
        """(B, G, num_classes) float32 in [0, 1) on the device of `sample_ids`."""
        first = layer - layer % self.num_layers
        key = first, num_kv_heads, num_classes
        if key not in self._made:
            self._made[key] = self._make(first, num_kv_heads, num_classes)
        return self._made[key][layer - first]

    def _make(self, first: int, num_kv_heads: int, num_classes: int) -> Tensor:
        """`uniform` of `num_layers` layers from `first` on, (layers, B, G, num_classes)."""
        device = self.sample_ids.device
        state = _mix(self.sample_ids.to(torch.int64) + _wrap(self.seed * 1_000_003))
        state = _mix(state + self.step)
        layers = torch.arange(first, first + self.num_layers, device=device)
        cell = torch.arange(num_kv_heads * num_classes, device=device) + layers[:, None] * 65_536
        state = _mix(_mix(state[None, :, None] + cell[:, None]) + 0x9E3779B9)
        mantissa = (state >> 40) & 0xFFFFFF
        return (mantissa.float() / 2**24).view(self.num_layers, -1, num_kv_heads, num_classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteSampler:
    """Hard routes with a soft gradient: z = hard + y - stop_gradient(y), y = softmax((logits + a g) / temperature).

    Attributes:
        noise: where g comes from.
        temperature: how soft the gradient is; it does not change the routes.
        noise_scale: a; at 0 the routes are those of inference.
    """

    noise: RouteNoise
    temperature: float
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature} must be a positive number.")
        if not 0 <= self.noise_scale <= 1:
            raise ValueError(f"noise_scale={self.noise_scale} must be in [0, 1].")

    def __call__(self, logits: Tensor, layer: int) -> Tensor:
        """Sample routes.

        Args:
            logits: (B, G, 2) float32, class 1 = sparse.
            layer: layer index, part of the noise's identity.

        Returns:
            (B, G) float32 whose value is 0 or 1 and whose gradient is that of the soft probability.
        """
        uniform = self.noise.uniform(layer, logits.shape[1])
        gumbel = -torch.log(-torch.log(uniform + _EPSILON) + _EPSILON)
        soft = torch.softmax((logits + self.noise_scale * gumbel) / self.temperature, dim=-1)[..., 1]
        hard = (soft > 0.5).to(soft.dtype)
        return hard + (soft - soft.detach())
