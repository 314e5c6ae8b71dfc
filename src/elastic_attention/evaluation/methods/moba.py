"""MoBA on all heads (arXiv 2502.13189), without the training that the paper has: 8 blocks of 1,024; dense decoding."""

from ...patterns import MobaConfig
from .base import MethodKind, choose_all

MOBA = MethodKind(
    summary="MoBA on all heads, untrained: each query reads 8 blocks of 1,024",
    decode="full",
    pattern=MobaConfig(block_size=1024, num_blocks=8),
    choose=choose_all,
)
