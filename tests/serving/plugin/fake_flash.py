"""vLLM's FlashAttention backend, with the plugin's classes, on a CPU: the kernel is a few lines of PyTorch."""

import torch
import torch.nn.functional as F
from vllm.v1.attention.backends import flash_attn

from elastic_attention.serving.vllm.attention_cuda import ElasticFlashBackend, ElasticFlashBuilder, ElasticFlashImpl

HEADS_SEEN = set()  # KV heads of the calls: 1 where a step was virtual


def attend_paged(*, q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, block_table, causal, **_):
    """What `flash_attn_varlen_func` computes over pages k, v (N, P, G, D)."""
    assert causal is True and k.shape[2] * (q.shape[1] // k.shape[2]) == q.shape[1]
    HEADS_SEEN.add(k.shape[2])
    starts, page = cu_seqlens_q.tolist(), k.shape[1]
    assert len(starts) == len(seqused_k) + 1 == len(block_table) + 1 and starts[-1] == len(q)
    for i, length in enumerate(seqused_k.tolist()):
        blocks = block_table[i, : -(-length // page)].long()
        keys, values = (part[blocks].flatten(0, 1)[:length].transpose(0, 1) for part in (k, v))
        queries = q[starts[i] : starts[i + 1]].transpose(0, 1)
        positions = torch.arange(length - queries.shape[1], length)
        mask = torch.arange(length) <= positions[:, None]
        result = F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=mask, scale=softmax_scale, enable_gqa=True
        )
        out[starts[i] : starts[i + 1]] = result[0].transpose(0, 1)
    return out


class FakeFlashImpl(ElasticFlashImpl):
    """FlashAttention 3, it says."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.vllm_flash_attn_version, self.supports_quant_query_input = 3, False

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        page = kv_cache.shape[2]
        number = len(slot_mapping)
        block, offset = slot_mapping // page, slot_mapping % page
        kv_cache[block, :, offset] = torch.cat([key[:number], value[:number]], dim=-1)


class GraphedBuilder(ElasticFlashBuilder):
    """Steps of single tokens go through the buffers that CUDA graphs read."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.use_full_cuda_graph = True


class FakeFlashBackend(ElasticFlashBackend):
    """In the place of the CPU's backend."""

    supported_dtypes = [torch.float32]

    @staticmethod
    def get_impl_cls():
        return FakeFlashImpl

    @staticmethod
    def get_builder_cls():
        return ElasticFlashBuilder


class GraphedFlashBackend(FakeFlashBackend):
    """As `FakeFlashBackend`, with `GraphedBuilder`."""

    @staticmethod
    def get_builder_cls():
        return GraphedBuilder


flash_attn.flash_attn_varlen_func = attend_paged
