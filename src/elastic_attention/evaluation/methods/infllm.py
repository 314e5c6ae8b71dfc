"""InfLLM-V2 on all heads (arXiv 2509.24663), without the paper's training.

Dense up to 8,192 tokens, else a window of 2,048 and the best 64 blocks of 64, the first block among them. Decoding is
dense here; the paper selects there as well.
"""

from ...patterns import InfllmConfig
from .base import MethodKind, choose_all

INFLLM = MethodKind(
    summary="InfLLM-V2 on all heads, untrained: window of 2,048 and 64 blocks of 64, dense up to 8,192",
    decode="full",
    pattern=InfllmConfig(block_size=64, local_window=2048, num_blocks=64, num_sink_blocks=1, dense_tokens=8192),
    choose=choose_all,
)
