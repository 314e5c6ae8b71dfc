"""Which keys a tile of queries reads, in which order: plain integer functions, the kernel's own source.

`scheduler.py`, `producer.py` and `steps.py` compile these very functions for the GPU, the tests run them in Python
against the oracle's mask. That is why they do nothing but arithmetic and do not call each other.

Query tiles and key tiles have `size` rows and start at multiples of `size` positions of their sequence, so that whole
blocks of the streaming pattern lie in one tile and only tiles on an edge need a mask. A query tile reads its key
tiles from the diagonal down: first the local window, then, behind a gap, the sink. At head dim 64 a query tile may be
wide: three half tiles instead of two.
"""

TILE = 128  # rows of a key tile, and of a query tile that is not wide
WIDE = 192  # rows of a wide query tile
EVERYTHING = 1 << 30  # a window that no sequence outgrows


def split_item(item: int, tiles: int, group: int) -> tuple[int, int, int]:
    """Work item -> place of its KV head among the heads, place of its tile (longest first), query head of the group.

    The tiles of one KV head follow each other, so that all processors share its keys in the cache.
    """
    section = item // (tiles * group)
    rest = item - section * (tiles * group)
    return section, rest // group, rest % group


def place_tile(behind: int, shift: int, stop_row: int, size: int) -> tuple[int, int]:
    """Number of a tile and tensor row of its first query.

    Args:
        behind: tiles of the same head that come after it.
        shift: tensor row of position 0 of the sequence, may be negative.
        stop_row: tensor row behind the last one that needs a tile, at least `shift - 2 ** 20 * size`.
    """
    # Division must round down for rows before position 0 too; the GPU's rounds to zero.
    tile = (stop_row - 1 - shift + (size << 20)) // size - (1 << 20) - behind
    return tile, tile * size + shift


def plan_keys(tile: int, sink: int, window: int, block: int, size: int) -> tuple[int, int, int, int]:
    """Key tiles of a query tile under the block rule.

    Args:
        tile: number of the query tile, not negative.
        sink, window, block: tokens; window = EVERYTHING reads all keys.

    Returns:
        steps: key tiles to read.
        masked_from: steps from this one on need a mask (and step 0, the diagonal); at least 1.
        opening: first key tile of the window.
        gap: key tiles between sink and window that nobody reads.
    """
    position = tile * size
    opening = max((position // block + 1) * block - window, 0) // size
    opened = (max(((position + size - 1) // block + 1) * block - window, 0) + size - 1) // size
    gap = max(opening * size - sink, 0) // size
    return tile + 1 - gap, max(tile + 1 - opened, 1), opening, gap


def plan_wide_keys(tile: int, sink: int, window: int, size: int, wide: int) -> tuple[int, int, int, int, int, int]:
    """Key tiles of a wide query tile, one and a half times `size` rows, where a block is a key tile.

    Its half tiles lie in two blocks, and are `early` or late. To a half tile a key tile is visible, or hidden, or its
    diagonal: early ones leave out step 0, late ones the step of the hole.

    Args:
        tile: number of the query tile, not negative.
        sink, window: tokens, multiples of `size`; window = EVERYTHING reads all keys.

    Returns:
        last: the first key tile to read, on the diagonal of the late half tiles.
        steps: key tiles to read, at least 2.
        early: how many half tiles are early.
        hole: the step that late ones leave out; `steps` or more if there is none.
        opening, gap: as of `plan_keys`, for the early ones.
    """
    position = tile * wide
    first = (position // size + 1) * size - window
    opening = max(first, 0) // size
    gap = max(opening * size - sink, 0) // size
    last = position // size + 1
    steps = last + 1 - gap
    has_hole = (first >= sink) & (first >= 0)
    return last, steps, 2 - position % size * 2 // size, last - opening + steps * (has_hole == 0), opening, gap


def key_tile(step: int, tile: int, opening: int, gap: int) -> int:
    """The key tile that a query tile reads at a step."""
    before = tile - step
    return before - gap * (before < opening)


def find_opening(query: int, window: int, block: int, dense_start: int, dense_stop: int) -> int:
    """The first key of a query's local window; queries in [dense_start, dense_stop) read everything."""
    is_dense = (query >= dense_start) & (query < dense_stop)
    return ((query // block + 1) * block - window) * (is_dense == 0)


def is_visible(key: int, sink: int, opening: int) -> bool:
    """The block rule between a key and a query whose window starts at `opening`. Causality is extra."""
    return (key < sink) | (key >= opening)
