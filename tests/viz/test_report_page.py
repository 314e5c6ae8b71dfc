"""The HTML page: whole, self-contained, and deaf to whatever a model answered."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from made_records import make_demo_row, make_record

from elastic_attention.errors import BackendUnavailable, ElasticAttentionError
from elastic_attention.viz import render_report

pytest.importorskip("jinja2")

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></script><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "--> <iframe src=//evil.example>",
)


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_page_shows_every_key_of_the_rows(demo: dict[str, Any]) -> None:
    page = Page(render_report(demo))
    for text in (
        "needle",
        "4,096",
        "7421",
        "oops",
        "0.75",
        "0.66",
        "0.61",
        "2.00 s",
        "3.00 s",
        "25.0 MiB",
        "100.0 MiB",
    ):
        assert text in page.text
    headings = (
        "Task, Prompt tokens, Expected, Answer, Verdict, Dense answer, Dense verdict, MSR, ESR prefill, ESR decode"
    )
    costs = "Prefill dense, Prefill elastic, KV dense, KV elastic"
    for heading in f"{headings}, {costs}".split(", "):
        assert heading in page.text
    assert "✓ right" in page.text
    assert "✗ wrong" in page.text


def test_totals(demo: dict[str, Any]) -> None:
    text = " ".join(Page(render_report(demo)).text.split())
    assert "1 / 2right answersdense model: 2 / 2" in text
    assert "50%" in text  # mean MSR of .75 and .25
    assert "75%" in text  # KV memory saved
    assert "1.50 ×" in text
    assert "tiny-model read 2 long prompts" in text


def test_page_makes_no_request(demo: dict[str, Any], quality: dict[str, Any]) -> None:
    html = render_report([demo, quality])
    page = Page(html)
    assert "://" not in html
    assert "@import" not in html
    assert re.findall(r"url\(", html) == []
    assert {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "base", "video", "form"} == set()
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert links == ["data:,", "#part-1", "#part-2"]
    assert not any("src" in attributes for _, attributes in page.elements)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")


def test_page_is_made_for_phones_and_both_themes(demo: dict[str, Any]) -> None:
    html = render_report(demo)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    assert "overflow-x: auto" in html


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_of_a_record_stays_text(demo: dict[str, Any], attack: str) -> None:
    quiet = Page(render_report(demo))
    rows = [
        make_demo_row(attack, expected=attack, answer=attack, answer_dense=attack, correct_dense=attack, msr=attack)
    ]
    rows[0][attack] = attack
    hostile = make_record(
        "demo",
        {"rows": rows, "head_maps": {attack: [[0, 1]]}, attack: attack},
        model=attack, device=attack, data=attack, config={attack: attack}, seed=attack,
    )  # fmt: skip
    page = Page(render_report([hostile, hostile | {"command": attack, "created": attack}]))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in quiet.elements} | {"code", "nav", "a"}
    assert page.count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert attack in page.text


def test_style_of_a_ratio_holds_only_a_number() -> None:
    rows = [make_demo_row("x", msr="1%; background: red", esr_prefill=0.5)]
    page = Page(render_report(make_record("demo", {"rows": rows})))
    styles = [a["style"] for _, a in page.elements if (a.get("style") or "").startswith("--share")]
    assert styles == ["--share: –", "--share: 50%", "--share: 61%"]


def test_missing_keys_are_shown_as_missing() -> None:
    page = Page(render_report(make_record("demo", {"rows": [{"task": "bare"}, {"task": "none", "correct": None}]})))
    assert "bare" in page.text
    assert "–" in page.text
    assert "Dense answer" not in page.text
    assert "ESR decode" in page.text


def test_demo_without_rows_and_other_commands(quality: dict[str, Any]) -> None:
    assert "elastic-attn demo" in Page(render_report(make_record("demo", {}))).text
    page = Page(render_report(quality))
    assert "python benchmarks/quality.py" in page.text
    assert page.count("table") == 2
    assert "riddle" in page.text
    bare = Page(render_report(make_record("bench", {"kv_bytes": {"tokens": 8192}}, model=None)))
    assert "measured." in bare.text
    assert "tokens 8192" in bare.text


def test_head_maps_draw_every_head_and_their_mean(demo: dict[str, Any]) -> None:
    page = Page(render_report(demo))
    cells = [attributes.get("class") for tag, attributes in page.elements if tag == "rect"]
    # Needle has 4 full heads; the mean map has them too (half full in the layers that copying routes).
    assert cells.count("unrouted") == 3
    assert cells.count("full") == 8
    assert cells.count("sparse") == 3 * 12 - 3
    assert "Mean of all tasks" in page.text
    assert "layer 0, KV head 0: sparse in 0.50" in page.text
    assert "layer 3, KV head 0: full" in page.text


@pytest.mark.parametrize(
    "head_map", [[], [[]], [[0, 1], [0]], [[2.0]], [["x"]], [[-0.1]], "text", 3, [[0, 1], None], {"0": [1]}]
)
def test_malformed_head_map_is_named(head_map: object) -> None:
    with pytest.raises(ElasticAttentionError, match="needle"):
        render_report(make_record("demo", {"head_maps": {"needle": head_map}}))


def test_maps_of_different_models_are_refused() -> None:
    with pytest.raises(ElasticAttentionError, match="one shape"):
        render_report(make_record("demo", {"head_maps": {"a": [[1]], "b": [[1, 0]]}}))
    with pytest.raises(ElasticAttentionError, match="head_maps must map"):
        render_report(make_record("demo", {"head_maps": [[1]]}))


def test_report_of_nothing_is_refused() -> None:
    with pytest.raises(ElasticAttentionError, match="no record"):
        render_report([])


def test_missing_jinja2_names_the_remedy(demo: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'elastic-attention\[demo\]'"):
        render_report(demo)
