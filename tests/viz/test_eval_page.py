"""The page of an evaluation: charts, head maps, routes of a sample, tables."""

import re
import shutil
import subprocess

import pytest
from made_records import make_record
from test_report_page import ATTACKS, Page

from elastic_attention.viz import render_report
from elastic_attention.viz.charts import Point, Series, draw_chart
from elastic_attention.viz.columns import pick_columns
from elastic_attention.viz.eval_charts import build_charts, find_front
from elastic_attention.viz.training_charts import build_training_charts

pytest.importorskip("jinja2")


def make_row(label, score, esr, **changes):
    row = {"method": label.split("@")[0], "label": label, "decode": "sparse", "n": 40, "score": score}
    row |= {"score_low": score - 0.1, "score_high": score + 0.1, "msr": esr, "esr_prefill": esr, "esr_decode": None}
    return row | {"substitute": None, "cut": 0} | changes


def make_eval(**changes):
    rows = [make_row("dense", 0.9, 0.0), make_row("routed", 0.88, 0.6), make_row("random@0.600", 0.3, 0.6)]
    by_length = [make_row("dense", 0.9, 0.0, length=4096), make_row("dense", 0.8, 0.0, length=8192)]
    examples = [
        {"task": "niah", "length": 4096, "index": 0, "label": "routed", "score": 1.0, "msr": 0.5, "answer": "it is 7",
         "routes": "01 -- 10"}
    ]  # fmt: skip
    by_task = [make_row("routed", 0.88, 0.6, task="qa_1", length=4096, substitute="facts for SQuAD")]
    metrics = {
        "rows": rows,
        "by_length": by_length,
        "by_task": by_task,
        "examples": examples,
        "head_maps": {"niah": [[0.5, 1.0], [None, None]]},
        "skipped": [{"task": "qa_2", "length": 4096, "index": 3, "reason": "line 4 has no answer"}],
        "substitutes": {"qa_1": "facts for SQuAD"},
        "counts": {"asked": 40, "cut": 3},
    }
    return make_record("eval", metrics | changes)


def test_the_page_shows_all_of_it():
    page = Page(render_report(make_eval()))
    for text in (
        "Quality against what is skipped", "Quality against length", "random@0.600", "Which heads stayed full",
        "The routes of one prompt", "niah, 4,096 tokens, sample 0: MSR 0.50, score 1.00", "it is 7", "stand-in",
        "facts for SQuAD", "line 4 has no answer", "cut 3",
    ):  # fmt: skip
        assert text in page.text, text
    assert ("option", {"value": "01 -- 10"}) in page.elements
    assert page.count("circle") == 3 + 2 + (3 + 1), "points, and keys in legends"
    headings = re.findall(r"<h2>(.*?)</h2>", render_report(make_eval()))
    assert headings[:4] == ["Row by row", "Score by task", "Which heads stayed full", "The routes of one prompt"]
    assert "Prefill dense" not in page.text, "columns of the demo"


def test_points_say_what_they_are():
    charts = build_charts(make_eval())
    assert [chart.title for chart in charts] == ["Quality against what is skipped", "Quality against length"]
    trade, lengths = charts
    marks = {curve.name: curve.marks[0] for curve in trade.curves if curve.name}
    assert marks["routed"].title == "routed: mean score 0.880, MSR 0.60, ESR 0.60"
    assert marks["dense"].x < marks["routed"].x == marks["random"].x
    assert marks["dense"].y < marks["routed"].y < marks["random"].y, "better is higher"
    assert marks["routed"].high < marks["routed"].y < marks["routed"].low
    assert [text for _, text in lengths.x_ticks] == ["4,096", "8,192"]
    assert trade.curves[-1].path.count("L") == 1, "dense and routed are what nothing beats"


def test_seconds_of_a_run_say_how_much_sooner_an_answer_begins():
    seconds = {4096: (2.0, 1.6), 8192: (6.0, 3.0)}
    by_length = [
        make_row(label, 0.9, 0.5, length=length, prefill_seconds=mean)
        for length, means in seconds.items()
        for label, mean in zip(("dense", "routed"), means, strict=True)
    ]
    rows = [make_row("dense", 0.9, 0.0, prefill_seconds=4.0), make_row("routed", 0.8, 0.5, prefill_seconds=2.3)]
    trade, speed = build_charts(make_eval(rows=rows, by_length=by_length))[-2:]
    assert [trade.title, speed.title] == ["Quality against speed", "Speed-up of prefill against length"]
    marks = {curve.name: [mark.title for mark in curve.marks] for curve in speed.curves}
    assert marks["routed"] == ["routed, 4,096 tokens: 1.25 ×", "routed, 8,192 tokens: 2.00 ×"]
    assert {title.split()[-2] for title in marks["dense"]} == {"1.00"}
    dense, routed, _ = trade.curves
    assert dense.marks[0].x < routed.marks[0].x and dense.marks[0].y < routed.marks[0].y
    without = [row for row in by_length if row["method"] != "dense"]
    titles = [chart.title for chart in build_charts(make_eval(rows=rows[1:], by_length=without))]
    assert titles == ["Quality against length"]


def test_front():
    points = [
        Point(x=x, y=y, title="") for x, y in ((0, 0.9), (0.5, 0.9), (0.5, 0.4), (0.6, 0.8), (0.9, 0.1), (0.2, 0.5))
    ]
    assert [(p.x, p.y) for p in find_front(points)] == [(0.5, 0.9), (0.6, 0.8), (0.9, 0.1)]


@pytest.mark.parametrize("values", [(0.5,), (0.0, 0.0), (1e-9, 2e-9), (-3.0, 1e6), (0.0, 0.3, 1.0)])
def test_axes_hold_their_values(values):
    series = [Series(name="a", points=[Point(x=v, y=v, title="") for v in values], is_joined=True)]
    chart = draw_chart(series, title="", note="", x_label="", y_label="")
    for mark in chart.curves[0].marks:
        assert chart.left <= mark.x <= chart.width and 0 <= mark.y <= chart.bottom
    assert 2 <= len(chart.x_ticks) <= 12 and 2 <= len(chart.y_ticks) <= 12


@pytest.mark.parametrize(("values", "ticks"), [((1.0,), [1, 2]), ((0.4, 59.0), [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64])])
def test_ratios_stand_at_powers_of_two(values, ticks):
    series = [Series(name="a", points=[Point(x=v, y=v, title="") for v in values])]
    chart = draw_chart(series, title="", note="", x_label="", y_label="", is_y_log=True)
    assert [float(text) for _, text in chart.y_ticks] == ticks
    assert all(chart.y_ticks[-1][0] <= mark.y <= chart.bottom for mark in chart.curves[0].marks)


def test_speeds_of_other_records():
    rows = [{"kernel": "k", "tokens": n, "msr": 0.5, "speedup": n / 4096} for n in (4096, 8192)]
    (chart,) = build_charts(make_record("bench", {"rows": rows}))
    assert chart.title == "Speed-up against length" and chart.curves[0].name == "k, MSR 0.50"


def test_many_kernels_are_drawn_apart():
    """Curves that would not be told apart get a chart for each MSR, or each kernel; one length makes no curve."""
    ratios = (0.0, 0.5, 0.75, 1.0)

    def draw(kernels, ratios):
        rows = [
            {"kernel": k, "tokens": n, "msr": r, "speedup": 2.0, "best_dense": "dense"}
            for k in (*kernels, "dense") for n in (4096, 8192) for r in ratios
        ]  # fmt: skip
        rows.append({"kernel": "once", "tokens": 4096, "msr": 0.5, "speedup": 9.0})
        return build_charts(make_record("bench", {"rows": rows}))

    by_ratio = draw("abcde", ratios)
    assert [chart.title for chart in by_ratio] == [f"Speed-up against length, MSR {r:.2f}" for r in ratios]
    colours = [(kernel, number) for number, kernel in enumerate("abcde")]
    assert all([(curve.name, curve.colour) for curve in chart.curves] == colours for chart in by_ratio)
    by_kernel = draw("ab", ratios)
    assert [chart.title for chart in by_kernel] == ["Speed-up against length: a", "Speed-up against length: b"]
    assert [curve.name for curve in by_kernel[0].curves] == [f"MSR {r:.2f}" for r in ratios]
    (one,) = draw("a", ratios)
    assert len(one.curves) == 4


def test_more_methods_than_colours_differ_in_shape():
    series = [Series(name=str(i), points=[Point(x=i, y=i, title="")]) for i in range(16)]
    curves = draw_chart(series, title="", note="", x_label="", y_label="").curves
    assert len({(curve.colour, curve.shape) for curve in curves}) == 16


STEPS = [
    {"step": i, "lm_loss": 2 - i / 900, "msr": {"robust": 0.5, "sensitive": i / 900},
     "multiplier_linear": {"robust": 0.1}, "multiplier_quadratic": {"robust": 0.2},
     "temperature": 1.5, "noise_scale": 0.1}
    for i in range(1, 900)
]  # fmt: skip


def test_training_curves_stand_on_the_page():
    loss, msr, multipliers, temperature = build_training_charts(STEPS, {"sensitive": (0.6, 0.7)})
    assert [curve.name for curve in loss.curves] == ["each step", "running mean"] and loss.title == "LM loss"
    robust, sensitive = msr.curves
    assert robust.band is None and sensitive.band[1] == pytest.approx(0.1 * (300 - 26 - 36), abs=0.2)
    assert 200 < sensitive.path.count("L") <= 400 and sensitive.marks == []
    assert [(c.name, c.is_dashed) for c in multipliers.curves] == [("λ₁ robust", False), ("λ₂ robust", True)]
    assert temperature.title == "Temperature"
    assert [curve.name for curve in temperature.curves] == ["temperature", "share of the noise"]
    page = Page(render_report(make_eval(), training=STEPS, intervals={"sensitive": (0.6, 0.7)}))
    assert ("a", {"href": "#part-2"}) in page.elements and "Model sparsity ratio by category" in page.text
    alone = render_report([], training=STEPS[:1])
    assert "elastic-attn train" in alone and "UTC" not in alone
    distilled = build_training_charts([{"step": 1, "distillation_loss": 2.0}])
    assert [chart.title for chart in distilled] == ["Distillation loss"]


def test_what_dense_masters_is_a_note():
    rows = [make_row("dense", 0.9, 0.0), make_row("routed", 0.8, 0.5)]
    mastered = [{"task": "vt", "length": 4096}, {"task": "vt", "length": 8192}, {"task": "qa_1", "length": 4096}]
    text = Page(render_report(make_eval(mastered_rows=rows, mastered=mastered))).text
    assert "These are vt (4,096, 8,192), qa_1 (4,096)." in text


def test_lists_of_tasks_have_no_columns_of_the_demo():
    columns = pick_columns([{"task": "vt", "length": 4096}, {"task": "qa_1", "length": 8192}])
    assert [column.heading for column in columns] == ["task", "length"]


def test_records_without_numbers_have_no_charts():
    rows = [make_row("a", 0.5, 0.5) | {"score": None}, make_row("b", 0.5, 0.5) | {"score": "x"}]
    assert build_charts(make_eval(rows=rows, by_length=[make_row("a", 1.0, 0.0, length=-1)] * 2)) == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_of_an_evaluation_stays_text(attack):
    quiet = Page(render_report(make_eval()))
    rows = [make_row(attack, 0.5, 0.5, category=attack), make_row(attack + "2", 0.4, 0.2, length=4096)]
    sample = {"task": attack, "length": 1, "index": attack, "label": attack, "score": 1, "answer": attack}
    examples = [sample | {"routes": routes} for routes in ("01 10", attack)]
    page = Page(render_report(make_eval(rows=rows, by_length=rows, examples=examples)))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in quiet.elements}
    assert page.count("script") == 1 and page.count("option") == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert attack in page.text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PROBE = """<script>
document.body.dataset.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.dataset.screen = innerWidth < 510;
const heading = [...document.querySelectorAll("th button")].find(button => button.textContent === "Score");
const read = () => [...heading.closest("table").tBodies[0].rows].map(row => row.cells[0].textContent.trim()).join(" ");
document.body.dataset.before = read();
heading.click();
document.body.dataset.once = read();
heading.click();
document.body.dataset.twice = read();
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_browser_draws_the_page_on_a_phone(tmp_path):
    """The scripts run under the page's own policy; nothing sticks out of the screen, tables sort, routes are drawn."""
    path = tmp_path / "page.html"
    html = render_report(
        [make_eval(), make_eval(rows=[make_row("a_very_long_name_of_a_method" * 3, 0.5, 0.5)])], training=STEPS
    )
    path.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=390,844", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    drawn = re.search(r'aria-label="Routes of the chosen sample"[^>]*>(.*?)</svg>', done.stdout, re.DOTALL)[1]
    assert re.findall(r'class="(\w+)"', drawn) == ["full", "sparse", "unrouted", "unrouted", "sparse", "full"]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout)[0]))
    assert found == {
        "width": "0",
        "screen": "true",
        "before": "dense routed random@0.600",
        "once": "random@0.600 routed dense",
        "twice": "dense routed random@0.600",
    }
