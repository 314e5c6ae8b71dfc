"""Tables of a Markdown file: made from records, replaced in place, and loud about names they do not know."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_records import make_demo_row, make_record

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.records import write_record
from elastic_attention.viz import update_tables
from elastic_attention.viz.markdown import format_suites, render_caption
from elastic_attention.viz.renderers import (
    render_bench_cpu,
    render_demo,
    render_frontier,
    render_memory,
    render_overhead,
    render_quality,
)
from elastic_attention.viz.tables import TABLES


def read_cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


@pytest.fixture
def results(tmp_path: Path, demo: dict[str, Any], quality: dict[str, Any]) -> Path:
    write_record(tmp_path / "results" / "demo.json", demo)
    write_record(tmp_path / "results" / "quality.json", quality)
    return tmp_path / "results"


def write_readme(folder: Path, *names: str) -> Path:
    blocks = [f"Before {name}.\n\n<!-- table:{name} -->\n<!-- /table:{name} -->\n\nAfter.\n" for name in names]
    (folder / "README.md").write_text("# Title\n\n" + "\n".join(blocks), encoding="utf-8")
    return folder / "README.md"


def test_tables_are_replaced_once_and_then_stay(tmp_path: Path, results: Path) -> None:
    readme = write_readme(tmp_path, "demo", "quality", "frontier", "demo")
    assert update_tables(readme, results, check=True) == ["demo", "quality", "frontier"]
    assert "needle" not in readme.read_text(encoding="utf-8")
    assert update_tables(readme, results, check=False) == ["demo", "quality", "frontier"]
    first = readme.read_text(encoding="utf-8")
    assert first.startswith("# Title\n\nBefore demo.")
    assert first.count("Before") == first.count("After.") == 4
    assert update_tables(readme, results, check=False) == []
    assert update_tables(readme, results, check=True) == []
    assert readme.read_text(encoding="utf-8") == first


def test_changed_record_makes_the_table_stale(tmp_path: Path, results: Path, demo: dict[str, Any]) -> None:
    readme = write_readme(tmp_path, "demo", "frontier")
    update_tables(readme, results, check=False)
    demo["metrics"]["rows"][0]["msr"] = 0.11
    write_record(results / "demo.json", demo)
    assert update_tables(readme, results, check=True) == ["demo"]
    assert update_tables(readme, results, check=False) == ["demo"]
    assert "0.11" in readme.read_text(encoding="utf-8")


def test_file_without_markers_is_refused(tmp_path: Path, results: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(b"no tables\r\n")
    with pytest.raises(ElasticAttentionError, match=r"README\.md has no place for a table.*known tables: demo, "):
        update_tables(readme, results, check=False)
    assert readme.read_bytes() == b"no tables\r\n"


def test_unknown_table_is_named(tmp_path: Path, results: Path) -> None:
    with pytest.raises(ElasticAttentionError, match="unknown table 'speed'.*demo, quality"):
        update_tables(write_readme(tmp_path, "speed"), results, check=False)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table:demo -->\n",
        "<!-- /table:demo -->\n",
        "<!-- table:demo -->\n<!-- table:quality -->\n<!-- /table:quality -->\n<!-- /table:demo -->",
        "<!-- table:demo -->\n<!-- /table:quality -->",
    ],
)
def test_marker_without_partner_is_refused(tmp_path: Path, results: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ElasticAttentionError, match="needs its"):
        update_tables(readme, results, check=False)
    assert readme.read_text() == text


def test_missing_record_or_readme_is_named(tmp_path: Path, results: Path) -> None:
    shutil.rmtree(results)
    with pytest.raises(ElasticAttentionError, match=r"demo\.json"):
        update_tables(write_readme(tmp_path, "demo"), results, check=False)
    with pytest.raises(ElasticAttentionError, match=r"NONE\.md"):
        update_tables(tmp_path / "NONE.md", results, check=True)


def test_answer_cannot_break_the_table_or_its_markers(tmp_path: Path, results: Path) -> None:
    name = "a|b\nc <!-- /table:demo --> `x` *y* [z](q) $m$"
    write_record(results / "demo.json", make_record("demo", {"rows": [make_demo_row(name)]}))
    readme = write_readme(tmp_path, "demo")
    update_tables(readme, results, check=False)
    row = next(line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("| a"))
    assert row.startswith(r"| a\|b c &lt;!-- /table:demo --&gt; \`x\` \*y\* \[z\](q) &#36;m&#36; | 4,096 |")
    assert update_tables(readme, results, check=True) == []


def test_demo_has_totals_and_takes_bare_rows(demo: dict[str, Any]) -> None:
    heading, _, first, second, total = read_cells(render_demo(demo))
    assert heading[:5] == ["Task", "Tokens", "Dense", "Elastic", "MSR"]
    assert first == [
        "needle",
        "4,096",
        "right",
        "right",
        "0.75",
        "0.66",
        "0.61",
        "3.00 s",
        "2.00 s",
        "100.0 MiB",
        "25.0 MiB",
    ]
    assert second[:5] == ["copying", "4,096", "right", "wrong", "0.25"]
    assert total == ["all", "", "2 of 2", "1 of 2", "0.50", "0.66", "0.61", "6.00 s", "4.00 s", "200.0 MiB", "50.0 MiB"]
    bare = read_cells(render_demo(make_record("demo", {"rows": [{"task": "x"}]})))
    assert bare[2][2:] == ["–"] * 9
    assert bare[3][2:4] == ["–", "0 of 1"]


def test_quality_averages_mastered_kinds_and_lists_the_others_apart(quality: dict[str, Any]) -> None:
    upper, lower = render_quality(quality).split("Outside the mean")
    rows = read_cells(upper)
    assert rows[2] == ["needle", "sensitive", "400", "1.000", "0.000", "0.980", "0.800", "0.300", "0.66"]
    assert rows[4] == ["mean of kinds", "", "800", "0.800", "0.300", "0.790", "0.700", "0.400", "0.78"]
    assert rows[5][3:8] == ["1.000", "0.375", "0.988", "0.875", "0.500"]
    assert read_cells(lower)[2] == ["riddle", "robust", "400", "0.200", "0.100", "0.200", "0.200", "0.100", "0.95"]


def test_frontier_lists_points_with_intervals(quality: dict[str, Any]) -> None:
    rows = read_cells(render_frontier(quality))
    assert [rows[3][i] for i in (0, 1, 2, 4)] == [r"all\_sparse", "sparse", "–", "1.00"]
    assert rows[4] == [
        "routed", "sparse", "0.70", rows[4][3], "0.70", "0.63", r"0.790 \[0.770, 0.810\]", r"0.988 \[0.978, 0.998\]"
    ]  # fmt: skip


def test_bench_computes_the_cost_over_the_ideal() -> None:
    row = {"tokens": 8192, "heads": 9, "kv_heads": 3, "dtype": "float32", "msr": 2 / 3, "milliseconds": 60.0,
           "dense_milliseconds": 100.0, "visited_fraction": 0.5}  # fmt: skip
    cells = read_cells(render_bench_cpu(make_record("bench", {"rows": [row, {"tokens": 1, "dense_milliseconds": 0}]})))
    assert cells[2] == ["8,192", "9 / 3", "float32", "0.67", "50.0%", "100.0", "60.0", "1.20"]
    assert cells[3][-1] == "–"


def test_overhead_and_memory() -> None:
    row = {"tokens": 4096, "dense_milliseconds": 1000.0, "full_milliseconds": 1012.3, "elastic_milliseconds": 700.0,
           "router_milliseconds": 9.0, "overhead_ratio": 0.0123, "router_ratio": 0.009}  # fmt: skip
    memory = [{"way": "dense", "tokens": 8192, "loaded_bytes": 2**30, "peak_bytes": 3 * 2**29}]
    record = make_record("bench overhead", {"rows": [row], "memory": memory})
    assert read_cells(render_overhead(record))[2] == ["4,096", "1,000.0", "1,012.3", "1.2%", "700.0", "9.0", "0.9%"]
    assert read_cells(render_memory(record))[2] == ["dense", "8,192", "1.0 GiB", "1.5 GiB"]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_takes_a_record_without_rows(name: str) -> None:
    assert TABLES[name].render(make_record("demo", {})).startswith(("| ", "Nothing"))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"suite": "almanac", "split": "heldout_format"}, "almanac, held-out texts and wordings"),
        ({"kinds": ["needle"], "split": "heldout"}, "mixture, held-out texts"),
        ({"mixture": {"split": "heldout"}, "ruler": {"corpora": None}}, "mixture, held-out texts; ruler"),
        ({"suite": "longbench", "files": {"a.jsonl": "12"}}, "longbench"),
        ({"files": {"a": 1}, "other": {"x": 1}}, "–"),
        ("random tokens", "–"),
    ],
)
def test_a_caption_says_what_training_has_not_seen(data: Any, text: str) -> None:
    assert format_suites(data) == text
    caption = render_caption(make_record("eval", {"rows": []}, data=data))
    assert (f" · {text} · " in caption) == (text != "–")
