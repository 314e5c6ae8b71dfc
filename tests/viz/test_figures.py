"""Figures: they are drawn from records, in both formats, the same each time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from made_records import make_record

from elastic_attention.errors import BackendUnavailable, ElasticAttentionError
from elastic_attention.viz import save_curves, save_frontier, save_head_maps
from elastic_attention.viz.curves import draw_curves, read_training_log
from elastic_attention.viz.frontier import draw_frontier
from elastic_attention.viz.head_map import draw_head_maps
from elastic_attention.viz.style import PALETTE

pytest.importorskip("matplotlib")

SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml"}


def make_step(step: int, **changes: Any) -> dict[str, Any]:
    by_category = {"sensitive": 0.6, "robust": 0.9}
    return {
        "step": step,
        "loss": 2.0,
        "lm_loss": 2.0 / step,
        "msr": by_category,
        "lm_loss_by_category": by_category,
        "multiplier_linear": by_category,
        "multiplier_quadratic": by_category,
        "temperature": 1.0,
        "noise_scale": 0.5,
        "learning_rate": 1e-3,
    } | changes


def write_log(folder: Path, *steps: dict[str, Any], tail: str = "") -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + tail)
    return folder / "log.jsonl"


def list_overlaps(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts in a figure that cover each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Ticks outside of the view keep a label that is never drawn.
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]
    # A legend covers more than its texts, so it stands for them as a whole.
    legends = [legend for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)) if legend]
    inside = {id(text) for legend in legends for text in legend.get_texts()}
    things = [(text.get_text(), text) for text in texts if id(text) not in inside]
    things += [("legend", legend) for legend in legends]
    boxes = [(name, thing.get_window_extent(canvas.get_renderer())) for name, thing in things]
    pairs = [(a, b) for number, a in enumerate(boxes) for b in boxes[:number]]
    return [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1]) and a[1].width > 1 and b[1].width > 1]


@pytest.mark.parametrize("ending", SIGNATURES)
def test_figures_are_written_and_reproducible(tmp_path: Path, demo: Any, quality: Any, ending: str) -> None:
    log = write_log(tmp_path, make_step(1), make_step(2))
    for folder in ("a", "b"):
        save_head_maps(demo["metrics"]["head_maps"], tmp_path / folder / f"maps.{ending}")
        save_frontier(quality, tmp_path / folder / f"frontier.{ending}")
        save_curves(log, tmp_path / folder / f"curves.{ending}", intervals={"robust": (0.8, 1.0)})
    for name in ("maps", "frontier", "curves"):
        first, second = ((tmp_path / folder / f"{name}.{ending}").read_bytes() for folder in ("a", "b"))
        assert first.startswith(SIGNATURES[ending])
        assert first == second


def test_labels_do_not_overlap(demo: Any, quality: Any) -> None:
    steps = [make_step(step) for step in range(1, 5)]
    assert list_overlaps(draw_head_maps(demo["metrics"]["head_maps"])) == []
    assert list_overlaps(draw_head_maps({f"task {i}": [[0.5] * 8] * 32 for i in range(8)})) == []
    assert list_overlaps(draw_frontier(quality["metrics"]["rows"])) == []
    assert list_overlaps(draw_curves(steps, intervals={"robust": (0.8, 1.0), "sensitive": (0.6, 0.6)})) == []


def test_frontier_marks_each_method_once_and_ends_of_intervals(quality: dict[str, Any]) -> None:
    left, _ = draw_frontier(quality["metrics"]["rows"]).axes
    labels = left.get_legend_handles_labels()[1]
    assert labels == ["routed", "routed, full decode", "random", "all_sparse", "dense"]
    routed = next(container for container in left.containers if container.get_label() == "routed")
    assert list(routed.lines[0].get_xdata()) == [0.7, 0.9]
    ends = routed.lines[2][0].get_segments()
    assert [round(float(y), 3) for _, y in ends[0]] == [0.77, 0.81]


def test_frontier_shows_every_method_of_an_evaluation(quality: dict[str, Any]) -> None:
    rows = [*quality["metrics"]["rows"], *(quality["metrics"]["rows"][0] | {"method": m} for m in ("moba", "fa_xa"))]
    handles, labels = draw_frontier(rows).axes[0].get_legend_handles_labels()
    assert labels[-2:] == ["moba", "fa_xa"]
    marks = [handle.lines[0].get_marker() for handle in handles]
    assert len(set(marks)) == len(marks) - 1, "full and sparse decoding of one method share a mark"


def test_other_methods_take_no_colour_that_every_comparison_has(quality: dict[str, Any]) -> None:
    others = ["prulong", "duo_attention", "xattention", "triangle_mix", "fa_xa", "retrieval_heads"]
    known = quality["metrics"]["rows"]
    rows = [*known, *(known[0] | {"method": method} for method in others)]
    handles, labels = draw_frontier(rows).axes[0].get_legend_handles_labels()
    colours = {label: handle.lines[0].get_color() for handle, label in zip(handles, labels, strict=True)}
    assert colours["prulong"] in PALETTE and colours["duo_attention"] in PALETTE
    added = {colours[method] for method in others}
    assert len(added) == len(others)
    assert not added & {colours[label] for label in ("routed", "random", "all_sparse", "dense")}


def test_frontier_joins_targets_and_the_budgets_of_one_router(quality: dict[str, Any]) -> None:
    def list_lines(*rows: dict[str, Any]) -> list[list[float]]:
        known = quality["metrics"]["rows"][0]
        left, _ = draw_frontier([known, *(known | row for row in rows)]).axes
        return [
            list(line.get_xdata()) for line in left.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata())
        ]

    dial = [
        {"method": "routed", "msr": msr, "budget": budget} for msr, budget in ((0.8, 1.0), (0.76, 0.0), (0.7, -4.0))
    ]
    assert list_lines(*dial) == [[0.7, 0.76, 0.8]]
    alone = ({"method": "fa_ta", "msr": 0.7, "budget": 0.0}, {"method": "routed", "msr": 0.7, "budget": None})
    assert list_lines(*alone) == []


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ((0.74, 0.69), (0.6, 0.8)),
        ((0.05, 0.97), (0.0, 1.02)),
        ((0.79, 0.79), (0.7, 0.9)),
        # The ends of the intervals lie 0.02 from the scores.
        ((0.75, 0.64), (0.6, 0.8)),
    ],
)
def test_scores_fill_the_axis(quality: dict[str, Any], scores: tuple[float, ...], ends: tuple[float, float]) -> None:
    known = quality["metrics"]["rows"][2]
    rows = [known | {"score": s, "score_low": s - 0.02, "score_high": s + 0.02} for s in scores]
    # What has no place on an axis is not drawn, so it takes no room either.
    figure = draw_frontier([*rows, {"method": "moba", "score": 0.1}])
    assert all(axes.get_ylim() == pytest.approx(ends) for axes in figure.axes)


def test_frontier_without_points_is_refused(demo: dict[str, Any], quality: dict[str, Any]) -> None:
    with pytest.raises(ElasticAttentionError, match="quality record"):
        save_frontier(demo, "never.png")
    places = {"msr": None, "esr_prefill": None}
    with pytest.raises(ElasticAttentionError, match="quality record"):
        draw_frontier([row | places for row in quality["metrics"]["rows"]])


def test_frontier_takes_rows_without_intervals(tmp_path: Path) -> None:
    rows = [{"method": "dense", "msr": 0.0, "score": 0.5}, {"method": "routed", "score": 0.4}]
    save_frontier(make_record("eval", {"rows": rows}), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_dollar_signs_in_a_task_are_no_formula(tmp_path: Path) -> None:
    save_head_maps({"costs $x^ or $y": [[0, 1]]}, tmp_path / "m.png")
    assert (tmp_path / "m.png").exists()


def test_other_endings_and_empty_maps_are_refused(tmp_path: Path, quality: dict[str, Any]) -> None:
    with pytest.raises(ElasticAttentionError, match=r"\.png or \.svg"):
        save_frontier(quality, tmp_path / "f.pdf")
    with pytest.raises(ElasticAttentionError, match="no head map.*elastic-attn inspect"):
        save_head_maps({}, tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_log_of_a_resumed_and_killed_run(tmp_path: Path) -> None:
    log = write_log(
        tmp_path, make_step(1), make_step(3), make_step(2, loss=9.0), make_step(3, loss=7.0), tail='{"step": 4'
    )
    steps = read_training_log(log)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[-1]["loss"] == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no step"),
        ("not json\n", "line 1 is not JSON"),
        ('{"step": 1}\n{"loss": 2}\n', "line 2 has no 'step'"),
        ("[1]\n", "line 1 has no 'step'"),
    ],
)
def test_damaged_log_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ElasticAttentionError, match=message):
        save_curves(tmp_path / "log.jsonl", tmp_path / "c.png")


def test_log_with_steps_alone_and_missing_log(tmp_path: Path) -> None:
    save_curves(write_log(tmp_path, {"step": 1}, {"step": 2, "msr": None}), tmp_path / "c.png")
    assert (tmp_path / "c.png").exists()
    with pytest.raises(ElasticAttentionError, match=r"none\.jsonl"):
        save_curves(tmp_path / "none.jsonl", tmp_path / "c.png")


def test_missing_matplotlib_names_the_remedy(tmp_path: Path, quality: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'elastic-attention\[demo\]'"):
        save_frontier(quality, tmp_path / "f.png")


def test_frontier_shows_shares_of_dense_where_rows_differ_in_samples(quality: dict[str, Any]) -> None:
    known = quality["metrics"]["rows"][0] | {
        "method": "routed",
        "n": 9,
        "score": 0.4,
        "relative_score": 1.01,
        "esr_decode": 0.0,
        "msr": 0.5,
    }
    figure = draw_frontier([known, known | {"method": "fa_xa"}])
    assert figure.axes[0].get_ylabel() == "mean score, 95% interval" and figure.axes[0].get_ylim()[0] < 0.4
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["routed, full decode", "fa_xa, full decode"], "no row decodes with fewer keys"
    figure = draw_frontier([known, known | {"method": "fa_xa", "n": 4}])
    assert figure.axes[0].get_ylabel() == "share of the dense score, 95% interval"
    assert figure.axes[0].get_ylim()[0] > 0.4
