"""A head map for the terminal: a full block for a full head, a light one for a sparse head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .head_map import CheckedHeadMap, check_head_map, mean_share

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

# From always full to always sparse. The second set serves terminals that know ASCII alone.
UNICODE_SHADES = ("█", "▓", "▒", "░")
ASCII_SHADES = ("#", "+", "-", ".")
NOT_ROUTED = " "
LABEL_EVERY = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMapPicture:
    """One head map, L lists of G shares in [0, 1] (1 = sparse), for `console.print` of rich.

    Layers run from left to right and KV heads from top to bottom; a map wider than the terminal continues below.

    Raises, when printed:
        ElasticAttentionError: the map is malformed.
    """

    head_map: Any
    title: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text]":
        """Lay the map out for the width and the encoding of this console."""
        from rich.text import Text

        shades = UNICODE_SHADES if options.encoding.startswith("utf") else ASCII_SHADES
        head_map = check_head_map(self.head_map, self.title)
        mean = mean_share(head_map)
        yield Text.assemble((self.title, "bold"), "" if mean is None else f"  MSR {mean:.2f}", overflow="fold")
        margin = max(len("layer "), len(f"KV {len(head_map[0]) - 1} "))
        # Two columns a layer make cells that look square.
        layers_a_band = max(1, (options.max_width - margin) // 2)
        for first in range(0, len(head_map), layers_a_band):
            yield from _draw_band(head_map[first : first + layers_a_band], first, margin, shades)
        yield Text.assemble(
            " " * margin, (shades[0] * 2, "cyan"), " full (reads all)   ", (shades[-1] * 2, "bright_black"),
            " sparse (reads the start and the latest tokens)",
        )  # fmt: skip


def _draw_band(band: CheckedHeadMap, first: int, margin: int, shades: tuple[str, ...]) -> "Iterator[Text]":
    from rich.text import Text

    yield Text(_label_layers(first, len(band), margin), style="bright_black", no_wrap=True)
    for head in range(len(band[0])):
        line = Text(f"KV {head} ".rjust(margin), style="bright_black", no_wrap=True)
        for heads in band:
            share = heads[head]
            if share is None:
                line.append(NOT_ROUTED * 2)
            else:
                shade = min(len(shades) - 1, int(share * len(shades)))
                line.append(shades[shade] * 2, style="cyan" if share < 0.5 else "bright_black")
        yield line


def _label_layers(first: int, num_layers: int, margin: int) -> str:
    """The ruler above a band: the number of every fifth layer, over its own column."""
    labels = "".join(
        str(layer).ljust(2 * LABEL_EVERY) if layer % LABEL_EVERY == 0 else "  " * (LABEL_EVERY - layer % LABEL_EVERY)
        for layer in range(first, first + num_layers)
        if layer == first or layer % LABEL_EVERY == 0
    )
    return ("layer".ljust(margin) + labels).rstrip()[: margin + 2 * num_layers + 2]
