"""Steps of one new token a request, whose virtual sequences lie in buffers that CUDA graphs read again and again.

Shape letters: R requests (padded to the size of a graph), L layers, G KV heads, W pages of a request.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...types import stage
from ..books import RouteBooks, StepPlan
from ..policy import streaming
from ..virtual import Pieces, make_tables
from . import layout
from .step import LayerRouting, StatesOf

MOST_BYTES = 1 << 30
"""Larger tables of all layers are not kept; attention then runs between the pieces of CUDA graphs."""


def count_bytes(vllm_config: Any, block_size: int) -> int:
    """Bytes of the tables of all layers, for the largest CUDA graph."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    width = -(-model.max_model_len // block_size)
    rows = count_requests(vllm_config) * model.get_num_kv_heads(parallel)
    return 4 * model.get_num_layers(parallel) * rows * width


def count_requests(vllm_config: Any) -> int:
    """The most requests of a CUDA graph."""
    most = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return min(vllm_config.scheduler_config.max_num_seqs, most)


class DecodeBuffers:
    """Tables and lengths of the virtual sequences of all layers, at addresses that never change."""

    def __init__(self, books: RouteBooks, num_requests: int, width: int, page: int) -> None:
        _, layers, self.heads = books.routes.shape
        rows, device = num_requests * self.heads, books.device
        self.num_requests, self._books, self._page = num_requests, books, page
        self.table = torch.zeros(layers, rows, width, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(layers, rows, dtype=torch.int32, device=device)
        self.starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._gaps = torch.zeros_like(self.lengths)
        self._filled: Any = None

    def fill(self, common: Any, plan: StepPlan | None) -> None:
        """Write what a step of these requests reads.

        Pages change where a request gets another block, and lengths in every step.

        Args:
            common: vLLM's metadata of the step, maybe with rows of padding.
            plan: None where no requests run (while a graph is captured).
        """
        rows = common.num_reqs * self.heads
        ends = common.seq_lens[: common.num_reqs].repeat_interleave(self.heads)
        state = self._describe(plan)
        if state is None or state != self._filled:
            self._fill_tables(common, plan, ends)
            self._filled = state
        torch.sub(ends, self._gaps[:, :rows], out=self.lengths[:, :rows])

    def _describe(self, plan: StepPlan | None) -> Any:
        if plan is None:
            return None
        spans = [(span.num_tokens - 1) // self._page for span in plan.spans]
        return self._books.moves, plan.names, spans, [span.num_tokens > span.sparse_from for span in plan.spans]

    def _fill_tables(self, common: Any, plan: StepPlan | None, ends: Tensor) -> None:
        number, device = common.num_reqs, self._books.device
        slots = torch.zeros(number, dtype=torch.int64, device=device)
        is_sparse = torch.zeros(number, dtype=torch.bool, device=device)
        if plan is not None:
            slots[: len(plan.slots)] = stage(plan.slots, device)
            flags = torch.tensor([span.num_tokens > span.sparse_from for span in plan.spans])
            is_sparse[: len(flags)] = stage(flags, device)
        request = torch.arange(number, device=device)
        last = common.seq_lens[:number].long()
        pieces = Pieces(request=request, first=request, count=torch.ones_like(request), end=last, is_sparse=is_sparse)
        routes = self._books.routes[slots].transpose(0, 1)
        blocks = common.block_table_tensor[:number, : self.table.shape[2]]
        table, lengths = make_tables(pieces, blocks, routes, self._page, streaming(self._books.config))
        rows = number * self.heads
        self.table[:, :rows, : table.shape[-1]] = table
        self._gaps[:, :rows] = ends - lengths


class DecodeStep:
    """One step over `DecodeBuffers`; routes that are decided in it are decided when it is over."""

    is_virtual = True

    def __init__(self, metadata: Any, buffers: DecodeBuffers, number: int) -> None:
        """`number`: requests, with those of padding."""
        self._metadata, self._buffers, self._number = metadata, buffers, number

    def decide(self, routing: LayerRouting, read_states: StatesOf) -> None:
        """Nothing: a graph cannot know when a request decides."""

    def virtualize(self, routing: LayerRouting, query: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Any]:
        """As `RoutedStep.virtualize`."""
        rows = self._number * self._buffers.heads
        metadata = dataclasses.replace(
            self._metadata,
            num_actual_tokens=rows,
            query_start_loc=self._buffers.starts[: rows + 1],
            seq_lens=self._buffers.lengths[routing.index, :rows],
            block_table=self._buffers.table[routing.index, :rows],
            scheduler_metadata=None,
        )
        queries = query[: self._number].reshape(rows, -1, query.shape[-1])
        return queries, layout.split_heads(cache), metadata

    def make_room(self, rows: Tensor, output: Tensor) -> Tensor:
        """Where the kernel writes: right to the tokens."""
        return output[: self._number].view(rows.shape)

    def put_back(self, result: Tensor, output: Tensor) -> Tensor:
        """The result is there already."""
        return output
