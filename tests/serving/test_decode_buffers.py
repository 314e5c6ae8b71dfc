"""Buffers that CUDA graphs read hold the tables of the rows of this very step."""

from types import SimpleNamespace

import torch

from elastic_attention.serving.books import RouteBooks
from elastic_attention.serving.policy import ServingConfig, streaming
from elastic_attention.serving.virtual import cut_pieces, make_tables
from elastic_attention.serving.vllm.decode_cuda import DecodeBuffers
from tiny_models import LAYERS, elastic_config, make_model

CONFIG = elastic_config(make_model())
HEADS, PAGE = CONFIG.base_model.num_kv_heads, CONFIG.sparse_pattern.block_size
LENGTH = 12 * PAGE
BLOCKS = {"a": torch.arange(16), "b": torch.arange(20, 36), "c": torch.arange(40, 56)}


def expect_tables(books, names):
    """Tables and lengths (L, R * G, ...) of single tokens at the end of these requests."""
    plan = books.plan_step(names)
    routes = books.routes[list(plan.slots)].transpose(0, 1)
    table = torch.stack([BLOCKS[name] for name in names]).int()
    return make_tables(cut_pieces(plan.spans, PAGE), table, routes, PAGE, streaming(CONFIG))


def test_rows_that_change_places_without_anybody_coming_or_going():
    books = RouteBooks(CONFIG, ServingConfig(), num_slots=4, device=torch.device("cpu"))
    buffers = DecodeBuffers(books, 4, 16, PAGE)
    digits = {"a": "1" * HEADS * LAYERS, "b": "01" * (HEADS * LAYERS // 2), "c": "10" * (HEADS * LAYERS // 2)}
    new = [(name, LENGTH, {"elastic_routes": routes}) for name, routes in digits.items()]
    for end, names in ((LENGTH + 1, "abc"), (LENGTH + 2, "abc"), (LENGTH + 3, "cab"), (LENGTH + 4, "ca")):
        lengths = {name: (end - 1, 1) for name in names}
        books.begin_step(new=new, finished=[], preempted=[], progress=lengths)
        new = []
        common = SimpleNamespace(
            num_reqs=len(names),
            seq_lens=torch.full((len(names),), end, dtype=torch.int32),
            block_table_tensor=torch.stack([BLOCKS[name] for name in names]).int(),
        )
        buffers.fill(common, books.plan_step(list(names)))
        table, lengths = expect_tables(books, list(names))
        rows = len(names) * HEADS
        assert torch.equal(buffers.lengths[:, :rows], lengths)
        for layer in range(LAYERS):
            for row in range(rows):
                used = -(-int(lengths[layer, row]) // PAGE)
                assert torch.equal(buffers.table[layer, row, :used], table[layer, row, :used]), (names, layer, row)
