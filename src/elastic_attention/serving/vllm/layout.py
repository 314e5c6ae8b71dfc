"""What differs between vLLM's versions and between its attention backends. Nothing else in the plugin knows.

Tried with vLLM's CPU builds 0.26 and 0.32, with the Python files of 0.33 over the kernels of the latter, and with 0.26
on H200s.

Shape letters: N blocks, G KV heads, P tokens of a block, D head dim, B requests, m tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import BackendUnavailable, UnsupportedModel
from ..report import KEY

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""Models whose keys are rotated last, so that a rotation taken back gives what the routers read."""

OLDEST = (0, 26)


def check_release(release: tuple[Any, ...]) -> None:
    """Is this `vllm.__version_tuple__` one that routed heads know? Builds without a number say 0.0 or 0.1.

    Raises:
        BackendUnavailable: it is too old.
    """
    if (0, 1) < tuple(release[:2]) < OLDEST:
        raise BackendUnavailable(
            f"vLLM {'.'.join(map(str, release[:3]))} is too old for routed heads; install 'vllm>=0.26', or serve with "
            "`elastic-attn serve --engine transformers`."
        )


def list_rows(runner: Any, metadata: Any) -> list[str]:
    """Request ids of a forward in the order of its rows.

    The V1 model runner keeps them with its batch. The V2 runner has a table of requests, and the attention metadata
    says which of them each row is.
    """
    batch = getattr(runner, "input_batch", None)
    if batch is not None:
        return list(batch.req_ids[: metadata.num_reqs])
    states = runner.req_states
    return [states.index_to_req_id[int(index)] for index in metadata.req_idx]


def read_steps(output: Any) -> dict[str, tuple[int, int]]:
    """Request id -> (tokens computed before, tokens of this step), from a scheduler's output."""
    cached = output.scheduled_cached_reqs
    before = {data.req_id: data.num_computed_tokens for data in output.scheduled_new_reqs}
    before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return {name: (before[name], num_new) for name, num_new in output.num_scheduled_tokens.items()}


def read_extra(sampling_params: Any) -> dict[str, Any]:
    """The options of a request that vLLM does not know: `extra_args`, or `vllm_xargs` of the HTTP API."""
    return getattr(sampling_params, "extra_args", None) or {}


def find_rotations(model: nn.Module) -> dict[str, nn.Module]:
    """The rotary embedding of every attention layer, by the layer's name.

    Raises:
        UnsupportedModel: a layer has none, or one that is no table of cosines and sines by position.
    """
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        attention: Any = getattr(module, "attn", None)
        if not hasattr(attention, "layer_name"):
            continue
        rotation: Any = getattr(module, "rotary_emb", None)
        table = getattr(rotation, "cos_sin_cache", None)
        if table is None or table.ndim != 2:
            raise UnsupportedModel(
                f"{attention.layer_name} has no plain rotary embedding, which routing must take back."
            )
        found[attention.layer_name] = rotation
    return found


def split_heads(cache: Tensor) -> Tensor:
    """A cache (N, G, P, 2 D) as one of single heads, (N * G, 1, P, 2 D); page b * G + g is head g of block b.

    Raises:
        BackendUnavailable: the blocks are not head-major, so that a head would have to be copied.
    """
    if not cache.is_contiguous():
        raise BackendUnavailable(
            "vLLM's KV cache is not head-major, which routed heads need; set VLLM_KV_CACHE_LAYOUT=HND."
        )
    return cache.flatten(0, 1).unsqueeze(1)


def list_head_major() -> Any:
    """The head-major layout as releases behind 0.26 name it."""
    from vllm.v1.kv_cache_interface import KVCacheLayout

    return (KVCacheLayout.LBHNC,)


def register_flash() -> None:
    """Make our FlashAttention backend known to vLLM in this process."""
    use_backend("CUSTOM", f"{__package__}.attention_cuda.ElasticFlashBackend")


def use_backend(name: str, path: str) -> None:
    """Let vLLM's attention backend `name` be the class at `path`, in this process."""
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum[name], path)
    selector._cached_get_attn_backend.cache_clear()  # an engine that ran here before may have asked already


class KeyReader(Protocol):
    """Reads keys back out of the blocks of a cache."""

    def read(self, cache: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        """Keys (B, m, G, D) of the tokens at `positions` (B, m) of requests with these blocks, (B, W)."""
        ...


def make_reader(impl: Any, layer: Any, cache: Tensor) -> KeyReader:
    """The reader of a layer's cache, (N, G, P, 2 D)."""
    return PackedKeys(impl, layer, cache) if cache.device.type == "cpu" else PlainKeys()


class PlainKeys:
    """Keys of a FlashAttention cache, which stand as they are in front of the values."""

    def read(self, cache: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        """As `KeyReader.read`."""
        page, head_dim = cache.shape[2], cache.shape[3] // 2
        block = table.gather(1, positions // page).long()
        return cache[block, :, positions % page, :head_dim]


class PackedKeys:
    """Keys of a CPU cache.

    Every instruction set packs a block in its own way, so the order is learnt from vLLM's own writer: once with the
    token as the key's value, once with the dimension.
    """

    def __init__(self, impl: Any, layer: Any, cache: Tensor) -> None:
        _, self.num_heads, page, width = cache.shape
        self.page, head_dim = page, width // 2
        place = torch.empty(page, head_dim, dtype=torch.int64)
        token = self._write(impl, layer, cache, torch.arange(page)[:, None].expand(page, head_dim))
        dimension = self._write(impl, layer, cache, torch.arange(head_dim).expand(page, head_dim))
        place[token, dimension] = torch.arange(page * head_dim)
        self._place = place

    def _write(self, impl: Any, layer: Any, cache: Tensor, values: Tensor) -> Tensor:
        block = cache.new_zeros(1, 1, *cache.shape[2:])
        keys = values[:, None].to(cache.dtype)
        impl.do_kv_cache_update(layer, keys, torch.zeros_like(keys), block, torch.arange(len(keys)))
        return block.flatten()[: values.numel()].round().long()

    def read(self, cache: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        """As `KeyReader.read`."""
        block = table.gather(1, positions // self.page).long()[:, :, None, None]
        head = torch.arange(self.num_heads)[:, None]
        return cache.flatten(2)[block, head, self._place[positions % self.page][:, :, None]]


def watch_reports(note: Callable[[dict[str, Any]], None]) -> None:
    """Call `note` with the report of every request that finishes in this process, which is the one that speaks HTTP."""
    from vllm.v1.engine.output_processor import OutputProcessor

    process = OutputProcessor.process_outputs
    if getattr(process, "is_elastic", False):
        return

    @functools.wraps(process)
    def process_outputs(self: Any, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            if output.kv_transfer_params and KEY in output.kv_transfer_params:
                note(output.kv_transfer_params[KEY])
        return process(self, engine_core_outputs, *args, **kwargs)

    process_outputs.is_elastic = True  # type: ignore[attr-defined]
    OutputProcessor.process_outputs = process_outputs


def choose_block_size(pattern_block: int, multiple: int) -> int:
    """The largest block of an engine up to 128 tokens that divides the pattern's block.

    Raises:
        UnsupportedModel: the engine has none.
    """
    sizes = [size for size in range(multiple, 129, multiple) if pattern_block % size == 0]
    if not sizes:
        raise UnsupportedModel(
            f"vLLM's blocks are multiples of {multiple} tokens, none divides the adapter's block_size={pattern_block}."
        )
    return sizes[-1]


def replace_rows(
    metadata: Any,
    *,
    starts: Tensor,
    starts_on_host: Tensor,
    lengths: Tensor,
    table: Tensor,
    longest: int,
    num_tokens: int,
) -> Any:
    """Common attention metadata of the same step for other rows.

    Args:
        starts: (V + 1,) first query row of each; lengths: (V,) keys; table: (V, W) pages.
        longest: most queries of a row; num_tokens: query rows.
    """
    return dataclasses.replace(
        metadata,
        num_reqs=len(lengths),
        num_actual_tokens=num_tokens,
        query_start_loc=starts,
        query_start_loc_cpu=starts_on_host,
        seq_lens=lengths,
        max_query_len=longest,
        block_table_tensor=table,
    )
