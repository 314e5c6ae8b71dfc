"""Head maps: which KV heads of which layers went sparse, one strip a task.

L layers, G KV heads. A head map is L lists of G shares in [0, 1], the share of prompts in which the head was sparse
(0 = always full, 1 = always sparse); None marks a layer that is not routed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .style import FULL_COLOUR, SPARSE_COLOUR, figure_style, save_figure
from .units import to_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CheckedHeadMap = list[list[float | None]]


def check_head_map(head_map: object, name: str) -> CheckedHeadMap:
    """Return `head_map` as L lists of G shares (float in [0, 1], or None for a head that is not routed).

    Raises:
        ElasticAttentionError: it is empty, its rows differ in length, or a share is no number in [0, 1].
    """
    if (
        not isinstance(head_map, list | tuple)
        or not head_map
        or not all(isinstance(row, list | tuple) for row in head_map)
    ):
        raise ElasticAttentionError(f"The head map of {name!r} must be a list of layers, each a list of KV heads.")
    if len({len(row) for row in head_map}) != 1 or not head_map[0]:
        raise ElasticAttentionError(
            f"The head map of {name!r} must have the same number of KV heads (≥ 1) in each layer."
        )
    return [[_check_share(share, f"{name!r}, layer {layer}") for share in row] for layer, row in enumerate(head_map)]


def average_head_maps(head_maps: Sequence[CheckedHeadMap]) -> CheckedHeadMap:
    """Mean share of each head over maps of one shape (L, G); None where no map has a share.

    Raises:
        ElasticAttentionError: there is no map, or the maps differ in shape.
    """
    shapes = {(len(head_map), len(head_map[0])) for head_map in head_maps}
    if len(shapes) != 1:
        raise ElasticAttentionError(
            f"Head maps of one model must have one shape (layers, KV heads), got {sorted(shapes)}."
        )
    return [[_mean(shares) for shares in zip(*layers, strict=True)] for layers in zip(*head_maps, strict=True)]


def mean_share(head_map: CheckedHeadMap) -> float | None:
    """Mean share over the routed heads: the model sparsity ratio of the map."""
    return _mean([share for row in head_map for share in row])


def draw_head_maps(head_maps: Mapping[str, Any], *, title: str = "Sparse KV heads by task") -> "Figure":
    """Draw one strip a task: layers from left to right, KV heads from top to bottom, dark = full, light = sparse.

    Raises:
        ElasticAttentionError: a map is malformed, or there is none.
        BackendUnavailable: matplotlib is not installed.
    """
    maps = {task: check_head_map(head_map, task) for task, head_map in head_maps.items()}
    if not maps:
        raise ElasticAttentionError(
            "There is no head map to draw: the record holds none. Those of an evaluation are in records whose routes "
            "differ between samples; `elastic-attn inspect --picture FILE` draws the one of a prompt."
        )
    with figure_style():
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        scale = LinearSegmentedColormap.from_list("full_to_sparse", [FULL_COLOUR, SPARSE_COLOUR])
        colours = scale.with_extremes(bad="white")
        strip_height = max(0.5, 0.17 * max(len(head_map[0]) for head_map in maps.values()))
        figure = Figure(figsize=(9, 1.3 + len(maps) * (strip_height + 0.27)), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        axes = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
        for axis, (task, head_map) in zip(axes, maps.items(), strict=True):
            # imshow wants (rows, columns) = (KV heads, layers); NaN takes the colour of "not routed".
            shares = [
                [float("nan") if share is None else share for share in heads] for heads in zip(*head_map, strict=True)
            ]
            image = axis.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            mean = mean_share(head_map)
            axis.set_title(task if mean is None else f"{task}   MSR {mean:.2f}", fontsize=9, fontweight="normal", pad=3)
            axis.tick_params(labelbottom=axis is axes[-1])
            _draw_grid(axis, num_layers=len(head_map), num_heads=len(head_map[0]))
        axes[-1].set_xlabel("layer")
        figure.supylabel("KV head", fontsize=10)
        bar = figure.colorbar(
            image, ax=list(axes), ticks=[0, 0.5, 1], fraction=0.02, pad=0.02, shrink=min(1.0, 3 / len(maps))
        )
        bar.ax.set_yticklabels(["full", "half", "sparse"])
        bar.outline.set_visible(False)
    return figure


def save_head_maps(
    head_maps: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "Sparse KV heads by task"
) -> None:
    """Draw `head_maps` (task to L x G shares) into a PNG or SVG file.

    Raises:
        ElasticAttentionError: a map is malformed, there is none, or the file cannot be written.
        BackendUnavailable: matplotlib is not installed.
    """
    save_figure(draw_head_maps(head_maps, title=title), path)


def _draw_grid(axis: Any, *, num_layers: int, num_heads: int) -> None:
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xticks([column - 0.5 for column in range(num_layers + 1)], minor=True)
    axis.set_yticks([row - 0.5 for row in range(num_heads + 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.set_axisbelow(False)
    axis.tick_params(which="both", length=0, labelsize=8)
    axis.set_xticks(range(0, num_layers, 5))
    axis.set_yticks(range(0, num_heads, 1 if num_heads <= 4 else 2 if num_heads <= 8 else 4))


def _check_share(share: object, where: str) -> float | None:
    number = float(share) if isinstance(share, bool) else to_number(share)
    if share is not None and (number is None or not 0 <= number <= 1):
        raise ElasticAttentionError(f"The head map of {where} holds {share!r:.40}; a share lies in [0, 1].")
    return number


def _mean(shares: Sequence[float | None]) -> float | None:
    present = [share for share in shares if share is not None]
    return sum(present) / len(present) if present else None
