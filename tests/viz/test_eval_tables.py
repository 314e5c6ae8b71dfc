import json

from made_records import make_record

from elastic_attention.viz.eval_tables import render_eval_methods, render_eval_tasks
from elastic_attention.viz.tables import update_tables


def make_row(label, score, **changes):
    row = {"method": label, "label": label, "decode": "sparse", "n": 20, "score": score, "score_low": score - 0.1}
    return row | {"score_high": score + 0.1, "relative_score": None, "msr": 0.5, "esr_decode": None} | changes


METRICS = {
    "rows": [
        make_row("dense", 0.9, relative_score=1.0, relative_low=1.0, relative_high=1.0),
        make_row("all_sparse", 0.3),
    ],
    "by_task": [
        make_row("dense", 1.0, task="needle", length=4096),
        make_row("dense", 0.8, task="qa_1", length=4096, substitute="facts for <SQuAD>"),
        make_row("all_sparse", 0.6, task="qa_1", length=4096, substitute="facts for <SQuAD>"),
    ],
    "substitutes": {"qa_1": "facts for <SQuAD>"},
}


def test_tasks_down_and_methods_across():
    assert render_eval_tasks(make_record("eval", METRICS)).splitlines() == [
        r"| Task | Tokens | n | dense | all\_sparse |",
        "|:--|--:|--:|--:|--:|",
        "| needle | 4,096 | 20 | 1.000 | – |",
        r"| qa\_1\* | 4,096 | 20 | 0.800 | 0.600 |",
        "| mean of tasks | – | 40 | 0.900 | 0.300 |",
        "",
        r"<sub>\* data that stands in for the official source: qa\_1: facts for &lt;SQuAD&gt;</sub>",
    ]


def test_methods():
    lines = render_eval_methods(make_record("eval", METRICS)).splitlines()
    assert lines[2].startswith(r"| dense | – | 20 | 0.900 \[0.800, 1.000\] | 1.000 \[1.000, 1.000\] | 0.50 | – | – |")
    assert lines[3].startswith(r"| all\_sparse | sparse | 20 | 0.300 \[0.200, 0.400\] | – | 0.50 |")
    official = make_record("eval", METRICS | {"substitutes": {}})
    assert "stands in" not in render_eval_methods(official)


def test_a_page_takes_them_from_the_records(tmp_path):
    (tmp_path / "ruler.json").write_text(json.dumps(make_record("eval", METRICS)))
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table:{n} -->\n<!-- /table:{n} -->\n" for n in ("ruler", "ruler_methods")))
    assert update_tables(page, tmp_path, check=False) == ["ruler", "ruler_methods"]
    assert update_tables(page, tmp_path, check=True) == []
    assert "elastic-attn eval" in page.read_text()


def test_a_method_that_decodes_with_all_keys_says_so_whatever_was_asked():
    rows = [make_row("fa_xa", 0.9, esr_decode=0.0), make_row("routed", 0.9, esr_decode=0.6), make_row("dense", 0.9)]
    table = render_eval_methods(make_record("eval", {"rows": rows})).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in table] == ["full", "sparse", "–"]
