"""The head map of a terminal: one cell a head, whatever the terminal's width and encoding."""

import io
from typing import Any

import pytest
from rich.console import Console

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.viz import HeadMapPicture


def print_map(head_map: Any, *, width: int = 100, encoding: str = "utf-8", title: str = "letter.txt") -> list[str]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, color_system=None).print(HeadMapPicture(head_map=head_map, title=title))
    stream.flush()
    return raw.getvalue().decode(encoding).splitlines()


def test_every_head_is_drawn() -> None:
    title, ruler, first, second, legend = print_map([[0, 1], [1, 1], [0.5, None], [0.3, 0.7]])
    assert title == "letter.txt  MSR 0.64"
    assert ruler == "layer 0"
    assert first == " KV 0 ██░░▒▒▓▓"
    assert second == " KV 1 ░░░░  ▒▒"
    assert "██ full" in legend
    assert "░░ sparse" in legend


def test_ruler_stands_over_its_layers() -> None:
    lines = print_map([[0]] + [[1]] * 9 + [[0]])
    assert lines[1].index("10") == lines[2].rindex("██")


def test_wide_map_goes_on_below() -> None:
    lines = print_map([[layer % 2] for layer in range(30)], width=46)
    assert [line.split()[1] for line in lines if line.startswith("layer")] == ["0", "20"]
    assert sum(line.count("█") // 2 for line in lines if line.startswith(" KV 0")) == 15
    assert max(map(len, lines)) <= 46


def test_band_that_starts_between_labels() -> None:
    lines = print_map([[0 if layer == 25 else 1] for layer in range(30)], width=50)
    ruler, cells = lines[3], lines[4]
    assert ruler.index("25") == cells.index("██")


def test_terminal_without_unicode() -> None:
    lines = print_map([[0, 1]], encoding="ascii")
    assert lines[2:4] == [" KV 0 ##", " KV 1 .."]


def test_title_is_no_markup() -> None:
    assert print_map([[0]], title="[red]notes[/red].txt")[0].startswith("[red]notes[/red].txt")


def test_malformed_map_is_refused() -> None:
    with pytest.raises(ElasticAttentionError, match=r"letter\.txt"):
        print_map([[0], [0, 1]])
