"""The schedule of the hopper kernel against the oracle's mask: the same functions that the GPU compiles."""

import pytest
import torch
from torch import Tensor

from elastic_attention.config import StreamingConfig
from elastic_attention.kernels.hopper import schedule
from elastic_attention.kernels.hopper.schedule import EVERYTHING, TILE, WIDE
from elastic_attention.patterns.streaming import StreamingPattern

# block, sink, window
PATTERNS = [
    (128, 128, 256),
    (128, 128, 2048),
    (128, 384, 128),
    (64, 64, 512),
    (64, 192, 64),
    (16, 16, 48),
    (32, 96, 480),
    (48, 48, 1008),
    (96, 96, 192),
]


def walk_keys(num_keys: int, sink: int, window: int, block: int) -> Tensor:
    """How often each pair (query, key) is read, as the kernel walks the tiles of one sequence."""
    tiles = -(-num_keys // TILE)
    positions = torch.arange(tiles * TILE)
    count = torch.zeros(tiles * TILE, tiles * TILE, dtype=torch.int32)
    for tile in range(tiles):
        steps, masked_from, opening, gap = schedule.plan_keys(tile, sink, window, block, TILE)
        queries = positions[tile * TILE : (tile + 1) * TILE, None]
        for step in range(steps):
            source = schedule.key_tile(step, tile, opening, gap)
            keys = positions[None, source * TILE : (source + 1) * TILE]
            seen = torch.ones(TILE, TILE, dtype=torch.bool)
            if step == 0 or step >= masked_from:
                seen = (keys <= queries) & schedule.is_visible(
                    keys, sink, schedule.find_opening(queries, window, block, 0, 0)
                )
            count[tile * TILE : (tile + 1) * TILE, source * TILE : (source + 1) * TILE] += seen
    return count[:num_keys, :num_keys]


@pytest.mark.parametrize(("block", "sink", "window"), PATTERNS)
@pytest.mark.parametrize("num_keys", [1, 127, 128, 129, 1000, 3021])
def test_every_visible_pair_is_read_once(block: int, sink: int, window: int, num_keys: int) -> None:
    pattern = StreamingPattern(StreamingConfig(num_sink_tokens=sink, local_window=window, block_size=block))
    positions = torch.arange(num_keys)
    expected = pattern.is_visible(positions[:, None], positions[None])
    assert torch.equal(walk_keys(num_keys, sink, window, block), expected.int())


def test_full_heads_read_every_key() -> None:
    assert torch.equal(walk_keys(700, 128, EVERYTHING, 128), torch.ones(700, 700).tril().int())


@pytest.mark.parametrize(("block", "sink", "window"), [p for p in PATTERNS if p[0] % TILE == 0])
def test_whole_blocks_need_no_mask_besides_the_diagonal(block: int, sink: int, window: int) -> None:
    for tile in range(40):
        steps, _, opening, gap = schedule.plan_keys(tile, sink, window, block, TILE)
        queries = torch.arange(tile * TILE, (tile + 1) * TILE)[:, None]
        for step in range(1, steps):
            keys = schedule.key_tile(step, tile, opening, gap) * TILE + torch.arange(TILE)[None]
            assert schedule.is_visible(keys, sink, schedule.find_opening(queries, window, block, 0, 0)).all()


def walk_wide_keys(num_keys: int, sink: int, window: int) -> Tensor:
    """As `walk_keys`, for wide tiles of three half tiles that leave out what is hidden from them."""
    tiles, half = -(-num_keys // WIDE), TILE // 2
    room = (tiles * WIDE // TILE + 2) * TILE
    count = torch.zeros(room, room, dtype=torch.int32)
    for tile in range(tiles):
        last, steps, early, hole, opening, gap = schedule.plan_wide_keys(tile, sink, window, TILE, WIDE)
        for who in range(3):
            left_out = 0 if early > who else hole
            diagonal = 1 if early > who else 0
            queries = torch.arange(half)[:, None] + tile * WIDE + who * half
            for step in set(range(steps)) - {left_out}:
                source = schedule.key_tile(step, last, opening, gap)
                keys = torch.arange(source * TILE, (source + 1) * TILE)[None]
                rows = torch.arange(half)[:, None] + ((who - early) & 1) * half
                seen = rows >= torch.arange(TILE)[None] if step == diagonal else torch.ones(half, TILE).bool()
                count[queries, keys] += seen
    return count[:num_keys, :num_keys]


@pytest.mark.parametrize(("sink", "window"), [(128, 2048), (256, 512), (128, 128), (384, 128), (1024, 256)])
@pytest.mark.parametrize("num_keys", [1, 64, 128, 200, 1000, 3021])
def test_wide_tiles_read_every_visible_pair_once(sink: int, window: int, num_keys: int) -> None:
    pattern = StreamingPattern(StreamingConfig(num_sink_tokens=sink, local_window=window, block_size=TILE))
    positions = torch.arange(num_keys)
    expected = pattern.is_visible(positions[:, None], positions[None])
    assert torch.equal(walk_wide_keys(num_keys, sink, window), expected.int())


def test_wide_tiles_of_full_heads_read_every_key() -> None:
    assert torch.equal(walk_wide_keys(1100, 128, EVERYTHING), torch.ones(1100, 1100).tril().int())


def test_streaming_reads_no_tile_between_sink_and_window() -> None:
    for tile in range(60):
        steps = schedule.plan_keys(tile, 128, 2048, 128, TILE)[0]
        assert steps == min(tile + 1, 17)


def test_dense_rows_read_everything() -> None:
    openings = schedule.find_opening(torch.arange(900)[:, None], 128, 128, 850, 870)
    seen = schedule.is_visible(torch.arange(900)[None], 128, openings)
    assert seen[850:870].all()
    assert not seen[849].all() and not seen[870].all()


def test_items_cover_every_tile_of_every_query_head_once() -> None:
    tiles, group, sections = 5, 3, 4
    items = [schedule.split_item(item, tiles, group) for item in range(tiles * group * sections)]
    assert len(set(items)) == len(items)
    assert [max(part) + 1 for part in zip(*items, strict=True)] == [sections, tiles, group]
    assert [section for section, _, _ in items] == sorted(section for section, _, _ in items)
    assert [behind for _, behind, _ in items[: tiles * group]] == sorted(
        behind for _, behind, _ in items[: tiles * group]
    )


@pytest.mark.parametrize("shift", [-5000, -128, -1, 0, 1, 77, 128, 300])
@pytest.mark.parametrize("num_rows", [1, 100, 128, 129, 1000])
def test_tiles_cover_every_row_and_start_at_whole_tiles(shift: int, num_rows: int) -> None:
    needed = -(-num_rows // TILE) + 1  # what the launch provides
    places = [schedule.place_tile(behind, shift, num_rows, TILE) for behind in range(needed)]
    covered = {row + i for _, row in places for i in range(TILE)}
    assert covered >= set(range(num_rows))
    for tile, row in places:
        assert row - shift == tile * TILE
    assert all(first[0] == second[0] + 1 for first, second in zip(places, places[1:], strict=False))
