"""One look for every figure: a colour-blind safe palette (Okabe and Ito), quiet axes, reproducible files."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailable, ElasticAttentionError
from ..records import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK = "#22303C"
QUIET = "#8A97A3"
FULL_COLOUR = "#0B4F7D"
SPARSE_COLOUR = "#E3ECF3"
FORMATS = ("png", "svg")

_SETTINGS: Any = {
    "font.size": 10,
    # A dollar sign in the name of a task is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6EAEE",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.dpi": 160,
    # A fixed salt makes the ids inside an SVG, and so the file, the same in every run.
    "svg.hashsalt": "elastic-attention",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the shared look to the figures made inside the block.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BackendUnavailable(
            "Figures need matplotlib, which is not installed. Install it with: pip install 'elastic-attention[demo]'"
        ) from error
    with matplotlib.rc_context(_SETTINGS):
        yield


def pick_colours(names: list[str]) -> dict[str, str]:
    """A colour for each name, in order; the palette starts again when it is used up."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def check_ending(path: str | os.PathLike[str]) -> str:
    """The format that the ending of `path` asks for, "png" or "svg".

    Raises:
        ElasticAttentionError: another ending.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ElasticAttentionError(f"Cannot draw into {path}: the ending must be .png or .svg.")
    return ending


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG, by the ending of `path`; the same figure gives the same bytes.

    Raises:
        ElasticAttentionError: another ending, or the file cannot be written.
    """
    ending = check_ending(path)
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format=ending, metadata={"Date": None} if ending == "svg" else None)
    write_file(path, buffer.getvalue())
