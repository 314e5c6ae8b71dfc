"""What the host hands to the hopper kernel, without a GPU: every argument by its name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elastic_attention.config import StreamingConfig
from elastic_attention.kernels.block_lists import BlockLists
from elastic_attention.kernels.spans import Spans

prefill = pytest.importorskip("elastic_attention.kernels.hopper.prefill", exc_type=ImportError)
CONFIG = StreamingConfig(num_sink_tokens=64, local_window=256, block_size=64)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`launch` that returns its results and the arguments of the kernel."""
    found: list[tuple[Any, dict[str, Any]]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: found.append((grid, dict(zip(names, args, strict=True)) | options))

    names = prefill.hybrid_prefill.arg_names
    monkeypatch.setattr(prefill, "hybrid_prefill", Recorder())
    monkeypatch.setattr(prefill, "find_counter", lambda device: torch.zeros(1, dtype=torch.int32))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))

    def run(*args: Any) -> tuple[Any, Any, dict[str, Any]]:
        results = prefill.launch(*args)
        return results, *found[-1]

    return run


def test_a_plain_batch(launch: Any) -> None:
    q, k = torch.zeros(2, 300, 8, 128, dtype=torch.bfloat16), torch.zeros(2, 500, 2, 128, dtype=torch.bfloat16)
    modes = torch.zeros(2, 2, dtype=torch.uint8)
    (out, lse), grid, given = launch(q.transpose(1, 2), *[k.transpose(1, 2)] * 2, modes, CONFIG, 0.5, None, None, None)
    assert out.shape == (2, 8, 300, 128) and out.transpose(1, 2).is_contiguous() and lse.shape == (2, 8, 300)
    assert grid == (2 * 8 * 3,)
    sizes = dict(num_queries=300, num_keys=500, num_q_heads=8, num_kv_heads=2, num_sequences=2, num_tiles=3)
    sizes |= dict(list_rows=0, list_room=0, num_sink_tokens=64, local_window=256, block=64)
    assert {name: given[name] for name in sizes} == sizes
    assert given["scale"] == pytest.approx(0.5 / 0.6931471805599453)
    assert given["out"] is out and given["lse"] is lse and given["modes"] is modes
    assert given["q_desc"].block_shape == [1, 1, 64, 128] and given["k_desc"].block_shape == [1, 1, 128, 128]
    assert given["SHAPE"].has_edges and not given["SHAPE"].is_ragged and not given["SHAPE"].has_lists


def test_a_packed_batch_with_lists(launch: Any) -> None:
    q, k = torch.zeros(1, 4, 400, 64, dtype=torch.float16), torch.zeros(1, 2, 700, 64, dtype=torch.float16)
    starts, lengths = torch.tensor([0, 100]), torch.tensor([100, 300])
    spans = Spans(
        query_start=starts, query_length=lengths, key_start=starts * 2, key_length=lengths * 2, is_packed=True,
        max_query_length=300,
    )  # fmt: skip
    counts, indices = torch.zeros(2, 4, 4, dtype=torch.int32), torch.zeros(2, 4, 21, dtype=torch.int16)
    lists = BlockLists(counts=counts, indices=indices, block_size=128)
    dense = torch.zeros(2, 2, dtype=torch.int32)
    modes = torch.full((2, 2), 2, dtype=torch.int32)
    _, grid, given = launch(q, k, k, modes, CONFIG, 1.0, spans, lists, dense)
    assert grid == (2 * 4 * 4,)
    assert given["list_counts"] is counts and given["list_indices"] is indices and given["dense_rows"] is dense
    assert (given["list_rows"], given["list_room"]) == (4, 21)
    assert given["query_lengths"] is lengths and given["key_starts"] is spans.key_start
    shape = given["SHAPE"]
    assert shape.head_dim == 64 and shape.is_packed and shape.has_lists and shape.has_dense_rows and shape.has_edges


@pytest.mark.parametrize(("width", "block", "consumers"), [(64, 128, 3), (64, 64, 2), (64, 256, 2), (128, 128, 2)])
def test_wide_tiles_are_for_small_heads_whose_blocks_are_key_tiles(
    launch: Any, width: int, block: int, consumers: int
) -> None:
    q, k = torch.zeros(2, 8, 300, width, dtype=torch.bfloat16), torch.zeros(2, 2, 500, width, dtype=torch.bfloat16)
    config = StreamingConfig(num_sink_tokens=block, local_window=2 * block, block_size=block)
    _, grid, given = launch(q, k, k, torch.zeros(2, 2, dtype=torch.uint8), config, 0.5, None, None, None)
    # Tiles start at multiples of their size: positions 200 to 499 touch 128, 256, 384 before the last one, or 192, 384.
    assert given["num_tiles"] == {2: 3, 3: 2}[consumers] and grid == (2 * 8 * given["num_tiles"],)
    assert given["SHAPE"].consumers == consumers and given["maxnreg"] == {2: 168, 3: 128}[consumers]


def test_rows_between_packed_sequences_are_cleared(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not write them, and calls over parts of the rows are added up."""
    q = torch.zeros(1, 4, 400, 64, dtype=torch.float16)
    monkeypatch.setattr(
        prefill, "make_outputs", lambda q: (torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan))
    )
    starts, lengths = torch.tensor([0, 200]), torch.tensor([150, 100])
    spans = Spans(
        query_start=starts, query_length=lengths, key_start=starts, key_length=lengths, is_packed=True,
        max_query_length=150,
    )  # fmt: skip
    (out, lse), *_ = launch(q, q, q, torch.zeros(2, 4, dtype=torch.uint8), CONFIG, 1.0, spans, None, None)
    assert not out.any() and bool((lse == -torch.inf).all())


def test_nothing_to_do_and_a_scale_that_makes_no_sense(launch: Any) -> None:
    q, k = torch.zeros(1, 2, 0, 64, dtype=torch.float16), torch.zeros(1, 2, 9, 64, dtype=torch.float16)
    modes = torch.zeros(1, 2, dtype=torch.uint8)
    assert prefill.launch(q, k, k, modes, CONFIG, 1.0, None, None, None)[0].shape == q.shape
    with pytest.raises(ValueError, match="scale=-1 must be positive"):
        prefill.launch(q, k, k, modes, CONFIG, -1, None, None, None)
